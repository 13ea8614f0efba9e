"""Follow the README as a newcomer would: every command in it, word by word, on a fresh clone.

python scripts/walk.py                     as this user; root walks a second time as nobody
python scripts/walk.py --only-me           as this user alone
python scripts/walk.py --repository PATH   with another repository's README and code

What is walked is the last commit, in an empty folder, with an empty home and a clean environment.
The commands are taken from the README itself; the servers that they name are those of a demo that
is kept running. Needs git, make and Python 3.11 or newer, no package.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pwd
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
PATH = "/usr/local/bin:/usr/bin:/bin"
SHELL = ["/bin/sh", "-c"]

# What the installation of packages may need to know about this machine, and nothing else does. A
# cache belongs to somebody else's home.
PASSED_ON = re.compile(
    r"(?!.*_CACHE_DIR$)(PIP_.*|UV_.*|\w+_proxy|\w+_PROXY|SSL_CERT_FILE|REQUESTS_CA_BUNDLE)"
)

INSTALLATION_SECONDS = 300.0
COMMAND_SECONDS = 120.0
STOP_SECONDS = 30.0
SHOWN_LINES = 40
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

ROWS = 300_000
COPIED_DAY = "2018-04-29"  # the demo has it copied, and changed at the source
OTHER_DAY = "2018-04-28"
DAYS = [f"2018-04-{day:02}" for day in range(1, 31)]

BLOCK = re.compile(
    r"^```(?P<language>\w*)\n(?P<fenced>.*?)^```$|(?P<indented>(?:^ {4}[^\n]*\n)+)",
    re.DOTALL | re.MULTILINE,
)
SCHEDULE = re.compile(r"([\d*/,-]+ +){5}")
KEPT_DSN = re.compile(r"export COPYPIPE_(?:SOURCE|DEST)='(.*)'\n")
COUNTED = re.compile(r"^(?:source|dest): +(\d+ rows of that day, md5 \w+)$", re.MULTILINE)
LOG_LINE = re.compile(r"from \S+ into \S+")

# Each block of the README that is walked: its name, its language, what it begins with or holds.
WANTED = {
    "the first command": ("", r"make demo\n"),
    "the demo's screen": ("", r"two servers: "),
    "the real thing": ("", r"\S*copypipe copy .*--source .*--dest "),
    "the crontab line": ("", SCHEDULE.pattern + r".*copypipe copy "),
    "the Makefile": ("make", r".*copypipe copy "),
    "the shell's loop": ("", r"seq .*xargs .*copypipe copy "),
    "the Python snippet": ("python", r".*copypipe\.copy\("),
}

# Run by the clone's Python: each server's days with their rows, and where the server lives.
ASK = """
import json, sys, psycopg
answers = []
for dsn in sys.argv[1:]:
    with psycopg.connect(dsn) as conn:
        conn.execute("SET TIME ZONE 'UTC'")
        days = conn.execute(
            "SELECT created_at::date::text, count(*), md5(string_agg(u::text, ',' ORDER BY id))"
            "  FROM users AS u GROUP BY 1 ORDER BY 1"
        ).fetchall()
        twice, folder, lock = conn.execute(
            "SELECT count(*) - count(DISTINCT id), current_setting('data_directory'),"
            "       pg_read_file('postmaster.pid') FROM users"
        ).fetchone()
    answers.append({
        "days": {day: [count, digest] for day, count, digest in days},
        "twice": twice,
        "folder": folder,
        "pid": int(lock.split()[0]),
    })
print(json.dumps(answers))
"""
TRUNCATE = """
import sys, psycopg
with psycopg.connect(sys.argv[1]) as conn:
    conn.execute("TRUNCATE users")
"""


# ------------------------------------------------------------------------------------ failures


@dataclass(frozen=True)
class Done:
    """A command that ended; `stderr` is empty where it went the way of stdout."""

    command: Sequence[str]
    code: int
    stdout: str
    stderr: str

    def fail(self, reason: str) -> NoReturn:
        """Give the walk up because of this command."""
        typed = self.command[2] if self.command[:2] == SHELL else shlex.join(self.command)
        out, err = (text.splitlines()[-SHOWN_LINES:] for text in (self.stdout, self.stderr))
        raise Failure("\n".join([reason, f"$ {typed}", *out, *err, f"exit code {self.code}"]))

    def check(self, holds: bool, reason: str) -> None:
        """Give the walk up unless it holds."""
        if not holds:
            self.fail(reason)


class Failure(Exception):
    """The README cannot be walked: where, why, and what was said there."""


@contextmanager
def step(what: str) -> Iterator[None]:
    """Tell what is done, then how long it took."""
    print(f"  {what:<68}", end="", flush=True)
    began = time.monotonic()
    try:
        yield
    except BaseException:
        print("FAILED", flush=True)
        raise
    print(f"{time.monotonic() - began:6.1f} s", flush=True)


# ------------------------------------------------------------------------------------ the README


def read(readme: str) -> dict[str, str]:
    """Return the blocks that are walked; raises Failure where one is missing."""
    found = [
        (match["language"] or "", match["fenced"] or textwrap.dedent(match["indented"] or ""))
        for match in BLOCK.finditer(readme)
    ]
    blocks = {}
    for name, (language, pattern) in WANTED.items():
        texts = [t for lang, t in found if lang == language and re.match(pattern, t, re.DOTALL)]
        if len(texts) != 1:
            raise Failure(f"README.md has {name} {len(texts)} times, instead of once: {pattern}")
        blocks[name] = texts[0].strip()
    return blocks


def replaced(text: str, pattern: str, value: str) -> str:
    """Return the text with the one place replaced; raises Failure unless there is one."""
    changed, number = re.subn(pattern, lambda _: value, text)
    if number != 1:
        raise Failure(f"README.md: {pattern} stands {number} times, instead of once, in:\n{text}")
    return changed


def masked(screen: str) -> list[str]:
    """Return the lines with every digest and number replaced."""
    return re.sub(r"\b[0-9a-f]{32}\b|\d+(\.\d+)*", "N", screen.strip()).splitlines()


# ------------------------------------------------------------------------------------ the walk


@dataclass(frozen=True)
class Person:
    """Who walks; `options` make a subprocess this person's."""

    name: str
    account: pwd.struct_passwd | None = None

    def options(self) -> dict[str, Any]:
        """Return what subprocess has to be told."""
        if self.account is None:
            return {}
        user, group = self.account.pw_uid, self.account.pw_gid
        return {"user": user, "group": group, "extra_groups": []}

    def take(self, folder: Path) -> None:
        """Make the folder, with all in it, this person's."""
        if self.account is not None:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, self.account.pw_uid, self.account.pw_gid, follow_symlinks=False)


class Walk:
    """One person's walk in one empty folder."""

    def __init__(self, person: Person, folder: Path) -> None:
        self.person = person
        self.folder = folder
        self.home = folder / "home"
        self.clone = folder / "copypipe"
        self.bin = self.clone / ".venv" / "bin"
        passed_on = {name: text for name, text in os.environ.items() if PASSED_ON.fullmatch(name)}
        self.env = {**passed_on, "PATH": PATH, "HOME": str(self.home), "LANG": "C.UTF-8"}

    def go(self, repository: Path) -> None:
        """Walk from the clone to the last recipe; raises Failure."""
        self.home.mkdir()
        with step("git clone"):
            # Linked objects would change their owner in the repository as well.
            clone = ["git", "clone", "--quiet", "--no-hardlinks", str(repository), str(self.clone)]
            self._run(clone, env=os.environ, mine=True)
            self.person.take(self.folder)
        blocks = read((self.clone / "README.md").read_text(encoding="utf-8"))
        with step(blocks["the first command"]):
            self._demo(blocks["the first command"], blocks["the demo's screen"])
        with self._servers() as (source, dest):
            self._name_services(shop=source, dwh=dest)
            with step("the real thing"):
                self._real_thing(blocks["the real thing"], source, dest)
            with step("the crontab line, three times"):
                self._crontab(blocks["the crontab line"], source, dest)
            with step("the Makefile, with make -j4"):
                self._makefile(blocks["the Makefile"], source, dest)
            with step("the shell's loop, into an empty table"):
                self._loop(blocks["the shell's loop"], source, dest)
            with step("the Python snippet"):
                self._snippet(blocks["the Python snippet"], source)

    def _demo(self, command: str, screen: str) -> None:
        done = self._shell(command, limit=INSTALLATION_SECONDS, merged=True)
        # What installs it comes before.
        shown, expected = masked(done.stdout[done.stdout.find("two servers: ") :]), masked(screen)
        for line, (there, here) in enumerate(zip(shown, expected, strict=False), start=1):
            done.check(there == here, f"line {line} of the screen is not the README's: {here}")
        done.check(len(shown) == len(expected), f"{len(shown)} lines, not {len(expected)}")
        counted = COUNTED.findall(done.stdout)
        done.check(bool(counted) and len(counted) % 2 == 0, "a side was not counted")
        done.check(counted[0::2] == counted[1::2], "source and dest differ")

    def _real_thing(self, command: str, source: str, dest: str) -> None:
        for option, dsn in (("--source", source), ("--dest", dest)):
            command = replaced(command, rf'{option} ("[^"]*"|\S+)', f"{option} {shlex.quote(dsn)}")
        done = self._shell(command)
        done.check(len(done.stdout.splitlines()) == 1, "not one line of a result")
        there, here = self._ask(source, dest)
        rows = there["days"][COPIED_DAY]
        done.check(here["days"].get(COPIED_DAY) == rows, f"{COPIED_DAY} is not the same")

    def _crontab(self, line: str, source: str, dest: str) -> None:
        line = replaced(line, rf"\A{SCHEDULE.pattern}", "")
        line = replaced(line, r"/opt/copypipe/bin/", shlex.quote(f"{self.bin}/"))
        if "%" in line:
            raise Failure(f"cron takes a % for the end of the line: {line}")

        def cron(line: str, *, code: int = 0) -> Done:
            env = {"HOME": str(self.home), "LOGNAME": self.person.name}
            env |= {"SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"}
            return self._run([*SHELL, line], env=env, cwd=self.home, code=code)

        def silently(line: str) -> Done:
            done = cron(line)
            done.check(done.stdout == done.stderr == "", "not silent: cron would send a mail")
            return done

        _, before = self._ask(source, dest)
        silently(line)
        done = silently(replaced(line, "--day yesterday", f"--day {OTHER_DAY}"))
        there, here = self._ask(source, dest)
        arrived = {day: rows for day, rows in here["days"].items() if day not in before["days"]}
        done.check(arrived == {OTHER_DAY: there["days"][OTHER_DAY]}, f"arrived: {arrived}")
        cron(f"{line} --fail-on-empty", code=9)

    def _makefile(self, text: str, source: str, dest: str) -> None:
        folder = self.folder / "make"
        folder.mkdir()
        (folder / "Makefile").write_text(text + "\n", encoding="utf-8")
        self.person.take(folder)
        done = self._shell("make -j4 all", cwd=folder, env=self._env_of_recipes())
        self._check_days(done, source, dest)

    def _loop(self, command: str, source: str, dest: str) -> None:
        self._run([str(self.bin / "python"), "-c", TRUNCATE, dest])
        done = self._shell(command, cwd=self.home, env=self._env_of_recipes())
        self._check_days(done, source, dest)

    def _snippet(self, text: str, source: str) -> None:
        done = self._run([str(self.bin / "python"), "-c", text], cwd=self.home)
        (there,) = self._ask(source)
        rows = there["days"][COPIED_DAY][0]
        done.check(done.stdout.startswith(f"{rows} "), f"it did not print {rows} rows")

    def _env_of_recipes(self) -> dict[str, str]:
        sides = {"COPYPIPE_SOURCE": "service=shop", "COPYPIPE_DEST": "service=dwh"}
        return {**self.env, **sides, "PATH": f"{self.bin}:{PATH}"}

    def _check_days(self, done: Done, source: str, dest: str) -> None:
        """Check that every day was told once and is at both sides the same, every row once."""
        told = collections.Counter(re.findall(r"\[(\S+), \S+\) UTC", done.stdout))
        lines = len(done.stdout.splitlines())
        done.check(told == collections.Counter(DAYS), "not every day once on stdout")
        done.check(lines == len(DAYS), f"{lines} lines on stdout, not {len(DAYS)}")
        for line in done.stderr.splitlines():
            done.check(bool(LOG_LINE.fullmatch(line)), f"on stderr: {line}")
        there, here = self._ask(source, dest)
        done.check(list(there["days"]) == DAYS, "the source has other days")
        for day in DAYS:
            done.check(here["days"].get(day) == there["days"][day], f"{day} is not the same")
        done.check(here["days"] == there["days"], "the dest has more days")
        done.check(there["twice"] == here["twice"] == 0, "some id is there twice")

    # -------------------------------------------------------------------------- the servers

    @contextmanager
    def _servers(self) -> Iterator[tuple[str, str]]:
        """Keep a demo's servers running; they must be gone afterwards."""
        command = [str(self.bin / "copypipe"), "demo", "--rows", str(ROWS), "--keep"]
        screen = self.folder / "screen"
        with screen.open("wb") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self.home,
                env=self.env,
                start_new_session=True,
                **self.person.options(),
            )
        try:
            with step("two servers to try it on"):
                source, dest = self._wait_for_dsns(process, command, screen)
                answers = self._ask(source, dest)
            yield source, dest
            with step("the servers are gone"):
                end(process)
                said = screen.read_text(encoding="utf-8", errors="replace")
                ended = Done(command, process.returncode, said, "")
                ended.check(process.returncode == 0, "it did not end well")
                for answer in answers:
                    ended.check(not Path(answer["folder"]).exists(), f"left: {answer['folder']}")
                    ended.check(not lives(answer["pid"]), f"left: process {answer['pid']}")
        finally:
            with ignored_signals():
                end(process)

    def _wait_for_dsns(
        self, process: subprocess.Popen[bytes], command: Sequence[str], screen: Path
    ) -> tuple[str, str]:
        deadline = time.monotonic() + COMMAND_SECONDS
        while True:
            code = process.poll()
            said = screen.read_text(encoding="utf-8", errors="replace")
            dsns = KEPT_DSN.findall(said)
            if len(dsns) == 2:
                return dsns[0], dsns[1]
            if code is not None:
                Done(command, code, said, "").fail("it ended, instead of keeping its servers")
            if time.monotonic() > deadline:
                end(process)
                late = Done(command, process.returncode, said, "")
                late.fail(f"no servers within {COMMAND_SECONDS:.0f} s")
            time.sleep(0.1)

    def _name_services(self, **dsns: str) -> None:
        """Write the service file, by which the README's lines find the servers."""
        path = self.home / ".pg_service.conf"
        path.touch(mode=0o600)
        sections = [
            "\n".join([f"[{name}]", *shlex.split(dsn)]) + "\n" for name, dsn in dsns.items()
        ]
        path.write_text("\n".join(sections), encoding="utf-8")
        self.person.take(path)

    def _ask(self, *dsns: str) -> list[dict[str, Any]]:
        done = self._run([str(self.bin / "python"), "-c", ASK, *dsns])
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        return answers

    # -------------------------------------------------------------------------- commands

    def _shell(self, command: str, **options: Any) -> Done:
        """Run a line as it would be typed, in the clone unless told otherwise."""
        return self._run([*SHELL, command], **options)

    def _run(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        limit: float = COMMAND_SECONDS,
        code: int = 0,
        merged: bool = False,
        mine: bool = False,
    ) -> Done:
        """Run a command to its end; raises Failure for another exit code, or when it is late.

        `merged` sends stderr the way of stdout, as on a screen; `mine` runs it as who started us.
        """
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            cwd=cwd or (self.folder if mine else self.clone),
            env=self.env if env is None else env,
            start_new_session=True,
            **({} if mine else self.person.options()),
        )
        late = ""
        try:
            try:
                out, err = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                late = f"not done within {limit:.0f} s"
                end(process)
                out, err = process.communicate(timeout=STOP_SECONDS)
        except BaseException:
            with ignored_signals():
                end(process)
            raise
        done = Done(command, process.returncode, out, err or "")
        done.check(not late, late)
        done.check(done.code == code, f"exit code {done.code}, not {code}")
        return done


def end(process: subprocess.Popen[Any]) -> None:
    """End a process that we started, with all of its group, and wait for it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)


def lives(pid: int) -> bool:
    """Return whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def ignored_signals() -> Iterator[None]:
    """Let a second Ctrl-C not disturb the end of what we started."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """Leave by an exception, so that every `finally` ends what it started."""
    sys.exit(128 + number)


# ------------------------------------------------------------------------------------ main


def main() -> int:
    """Walk as everybody who is asked for; return 1 where somebody could not."""
    parser = argparse.ArgumentParser(description="Follow the README as a newcomer would.")
    parser.add_argument("--only-me", action="store_true", help="root does not walk as nobody")
    parser.add_argument(
        "--repository", type=Path, default=ROOT, help="what to clone (default: this one)"
    )
    options = parser.parse_args()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave)

    try:
        me = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # as in many a container
        me = str(os.geteuid())
    people = [Person(me)]
    if os.geteuid() == 0 and not options.only_me:
        people.append(Person("nobody", pwd.getpwnam("nobody")))
    for person in people:
        print(f"as {person.name}, in an empty folder:", flush=True)
        with tempfile.TemporaryDirectory(prefix="walk-") as folder:
            try:
                Walk(person, Path(folder).resolve()).go(options.repository.resolve())
            except Failure as failure:
                print(f"\n{failure}\n\nthe README cannot be walked (as {person.name})", flush=True)
                return 1
        print(f"the README can be walked (as {person.name})", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""copypipe demo: what the README shows is what it prints; nothing is left behind."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = Path(sys.executable).with_name("copypipe")
SCREEN = re.compile(r"<!-- demo: scripts/docs.py -->\n```\n(.*?)\n```\n", re.DOTALL)


def masked(text: str) -> list[str]:
    """Return the lines with everything replaced that differs from run to run."""
    text = re.sub(r"\b[0-9a-f]{32}\b", "DIGEST", text)
    text = re.sub(r"127\.0\.0\.1:\d+", "HOST", text)
    text = re.sub(r"(?<![\w-])\d+(\.\d+)?(?![\w-])", "N", text)
    return re.sub(r"N (kB|MB)", "SIZE", text).splitlines()


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Yield an environment with a home and a place for temporary files that must end up empty."""
    # Not pytest's own folder: the path of a unix socket may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        yield {**os.environ, "HOME": str(tmp_path), "TMPDIR": folder}
        assert list(Path(folder).iterdir()) == []


def test_the_readme_shows_what_the_demo_prints(folders: dict[str, str]) -> None:
    shown = SCREEN.search((ROOT / "README.md").read_text())
    done = subprocess.run(
        [COMMAND, "demo", "--rows", "3000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=folders,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert shown is not None
    assert masked(done.stdout.strip()) == masked(shown[1])


def test_it_counts_at_the_servers_and_on_a_terminal_the_bars_stay_on_the_screen(
    folders: dict[str, str],
) -> None:
    terminal, end = pty.openpty()
    try:
        # A terminal without a size would get no bar.
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 110, 0, 0))
        out = subprocess.run(
            [COMMAND, "demo", "--rows", "3000"],
            stdout=subprocess.PIPE,
            stderr=end,
            text=True,
            env=folders,
            check=True,
        ).stdout
        drawn = os.read(terminal, 1 << 16).decode()
    finally:
        os.close(end)
        os.close(terminal)

    counts = re.findall(r"^(source|dest): +(\d+) rows of that day, md5 (\w+)$", out, re.MULTILINE)
    assert [side for side, *_ in counts] == ["source", "dest"] * 3
    assert [count for _, count, _ in counts] == ["100", "100", "100", "100", "90", "90"]
    digests = [digest for *_, digest in counts]
    assert digests[0:4] == [digests[0]] * 4
    assert digests[4] == digests[5] != digests[0]
    assert out.count("copied 90") == 1
    last = [line.split("\r")[-1] for line in drawn.split("\r\n") if "%|" in line]
    assert [re.findall(r"100%\|.*\d+ rows", line) != [] for line in last] == [True] * 3


def test_kept_servers_answer_until_they_are_stopped(folders: dict[str, str]) -> None:
    with subprocess.Popen(
        [COMMAND, "demo", "--rows", "3000", "--keep"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=folders,
    ) as process:
        assert process.stdout is not None
        dsns = []
        for line in process.stdout:
            dsns += re.findall(r"export COPYPIPE_\w+='(.*)'", line)
            if "xargs" in line:
                break
        for dsn in dsns:
            with psycopg.connect(dsn) as conn:
                assert conn.execute("SELECT count(*) FROM users").fetchone()[0] > 0
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0

    assert len(dsns) == 2
    assert time.monotonic() - began < 10

"""Definitions of tables, and of all they depend on: pg_dump reads them, pg_restore writes them.

What depends on what is told by the archive itself (`pg_restore --list --verbose`), whose entries
name the objects by their OIDs at the source. The statements are run over our own connection to the
dest, in one transaction, and not by pg_restore: it writes settings that an older server does not
know, and goes on behind an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from psycopg import pq

from copypipe import launcher
from copypipe.errors import CopyFailed, PlanRefused, printable
from copypipe.servers import Session
from copypipe.statements import schemas as statements
from copypipe.tables import spelled

Section = Literal["pre-data", "post-data"]

# How long pg_dump waits for a table that somebody has locked. Who waits for the locks of the leader
# (an ALTER TABLE) would be waited for here, and nobody sees that as a deadlock.
LOCK_SECONDS = 30


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split("|")]


# What an archive lists, as pg_dump writes it (pg_dump.c, the `description` of each ARCHIVE_OPTS).
# Of two that begin alike the longer one is meant.
_KINDS = sorted(
    _words("""
    ACCESS METHOD|ACL|AGGREGATE|BLOB|BLOB COMMENTS|BLOB METADATA|CAST|CHECK CONSTRAINT|COLLATION
    |COMMENT|CONSTRAINT|CONVERSION|DATABASE|DATABASE PROPERTIES|DEFAULT|DEFAULT ACL|DOMAIN|ENCODING
    |EVENT TRIGGER|EXTENSION|FK CONSTRAINT|FOREIGN DATA WRAPPER|FOREIGN TABLE|FUNCTION|INDEX
    |INDEX ATTACH|LARGE OBJECT|MATERIALIZED VIEW|MATERIALIZED VIEW DATA|OPERATOR|OPERATOR CLASS
    |OPERATOR FAMILY|PARTITION ATTACH|POLICY|PROCEDURAL LANGUAGE|PROCEDURE|PUBLICATION
    |PUBLICATION TABLE|PUBLICATION TABLES IN SCHEMA|ROW SECURITY|RULE|SCHEMA|SEARCHPATH
    |SECURITY LABEL|SEQUENCE|SEQUENCE OWNED BY|SEQUENCE SET|SERVER|SHELL TYPE|STATISTICS
    |STATISTICS DATA|STDSTRINGS|SUBSCRIPTION|SUBSCRIPTION TABLE|TABLE|TABLE ATTACH|TABLE DATA
    |TEXT SEARCH CONFIGURATION|TEXT SEARCH DICTIONARY|TEXT SEARCH PARSER|TEXT SEARCH TEMPLATE
    |TRANSFORM|TRIGGER|TYPE|USER MAPPING|VIEW
    """),
    key=len,
    reverse=True,
)
_ENTRY = re.compile(rf"(\d+); (\d+) (\d+) ({'|'.join(_KINDS)}) (.*)")
_NEEDS = re.compile(r";\s+depends on:((?: \d+)+)")

# What belongs to a table: these go with it, unless they need a table that does not.
_OF_TABLES = frozenset(
    _words("""
    CHECK CONSTRAINT|COMMENT|CONSTRAINT|DEFAULT|FK CONSTRAINT|INDEX|INDEX ATTACH|POLICY
    |ROW SECURITY|RULE|SEQUENCE|SEQUENCE OWNED BY|STATISTICS|TABLE ATTACH|TRIGGER|ACL|SECURITY LABEL
    """)
)
# What is about something, whatever it is: it comes with that.
_ABOUT = frozenset({"COMMENT", "ACL", "SECURITY LABEL", "CHECK CONSTRAINT"})
_RELATIONS = frozenset({"TABLE", "VIEW", "MATERIALIZED VIEW", "FOREIGN TABLE"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One object, or one statement about it, in an archive."""

    number: int
    catalog: int
    """The OID of the catalog that it stands in; 0 for what is no object of its own."""
    oid: int
    kind: str
    name: str
    """Schema, name and owner, as the list shows them."""
    needs: frozenset[int]
    """The numbers of the entries that must be there before."""

    @property
    def called(self) -> str:
        """Return schema and name, without the owner."""
        return self.name.rsplit(" ", 1)[0]


@dataclass(frozen=True, slots=True)
class Selection:
    """What of an archive is wanted for some tables."""

    entries: tuple[Entry, ...]
    others: tuple[Entry, ...]
    """Relations among them that nobody named: something needs their row types."""
    left_out: tuple[Entry, ...]
    """What belongs to the tables and needs others that are not wanted, such as foreign keys."""


def parse(listing: str) -> tuple[Entry, ...]:
    """Return the entries of what `pg_restore --list --verbose` prints."""
    found: list[Entry] = []
    for line in listing.splitlines():
        if entry := _ENTRY.fullmatch(line):
            number, catalog, oid = (int(entry[group]) for group in (1, 2, 3))
            found.append(Entry(number, catalog, oid, entry[4], entry[5], frozenset()))
        elif found and (needs := _NEEDS.match(line)):
            found.append(replace(found.pop(), needs=frozenset(map(int, needs[1].split()))))
    return tuple(found)


def select(
    entries: Sequence[Entry], tables: Collection[int], apart: Collection[int] = ()
) -> Selection:
    """Return what makes the tables with these OIDs, in the order of the archive.

    That is the tables, what belongs to them, and all that these need, and so on. Those `apart` are
    partitions that are not wanted: they are made at most without rows, where something needs their
    row types, and tied to nothing.
    """
    entries = _untied(entries, apart)
    by_number = {entry.number: entry for entry in entries}
    named = {e.number for e in entries if e.kind in _RELATIONS and e.oid in tables}
    chosen = _with_needs(named, by_number)
    owners, left_out = set(named), set[int]()
    grown = True
    while grown:  # comments belong to what belongs to tables
        grown = False
        for entry in entries:
            known = entry.number in owners or entry.number in left_out
            of = chosen if entry.kind in _ABOUT else owners
            if known or entry.kind not in _OF_TABLES or not entry.needs & of:
                continue
            needs = _with_needs([entry.number], by_number)
            relations = {each for each in needs if by_number[each].kind in _RELATIONS}
            fits = relations <= named | chosen
            if entry.kind == "FK CONSTRAINT":
                # One to a table of which no rows come would not hold.
                fits = fits and entry.needs & relations <= named
            if fits:
                chosen |= needs
                owners.add(entry.number)
            else:
                left_out.add(entry.number)
            grown = True
    return Selection(
        entries=tuple(e for e in entries if e.number in chosen),
        others=tuple(
            e
            for e in entries
            if e.number in chosen and e.kind in _RELATIONS and e.number not in named
        ),
        left_out=tuple(e for e in entries if e.number in left_out),
    )


# What ties a partition to its parent. A foreign key to the parent needs the indexes of all of its
# partitions, as pg_dump tells it.
_TIES = frozenset({"TABLE ATTACH", "INDEX", "CONSTRAINT", "INDEX ATTACH", "COMMENT"})


def _untied(entries: Sequence[Entry], partitions: Collection[int]) -> Sequence[Entry]:
    """Return what there is without indexes of partitions, and what else ties these to others."""
    relations = {e.number for e in entries if e.kind in _RELATIONS and e.oid in partitions}
    gone: set[int] = set()
    for entry in entries if relations else ():  # each comes behind what it needs
        if entry.kind in _TIES and entry.needs & (relations | gone):
            gone.add(entry.number)
    return [replace(e, needs=e.needs - gone) for e in entries if e.number not in gone]


def _with_needs(numbers: Iterable[int], by_number: Mapping[int, Entry]) -> set[int]:
    """Return these, what they need, what that needs, and so on."""
    found: set[int] = set()
    left = list(numbers)
    while left:
        number = left.pop()
        if number not in found and number in by_number:
            found.add(number)
            left += by_number[number].needs
    return found


# What people know by a name of its own, and may look for at the dest.
_KNOWN = frozenset(
    _words("""
    AGGREGATE|EVENT TRIGGER|EXTENSION|FOREIGN TABLE|FUNCTION|MATERIALIZED VIEW|PROCEDURE|PUBLICATION
    |SEQUENCE|SUBSCRIPTION|TYPE|DOMAIN|VIEW
    """)
)


def rest(entries: Sequence[Entry], chosen: Selection) -> Selection:
    """Return what people know by name, and no table needs."""
    wanted = {entry.number for entry in chosen.entries}
    found = [each for each in entries if each.kind in _KNOWN and each.number not in wanted]
    return Selection(tuple(found), (), ())


def missing(source: Session, dest: Session, wanted: Selection) -> tuple[Entry, ...]:
    """Return what of a selection the dest lacks; both sessions are in a transaction.

    A table that is there is left as it is: nothing that belongs to it is made. Other objects that
    are there are taken for what they are called; whether a type fits is found out by whoever copies
    into a column of it.
    """
    objects = [entry for entry in wanted.entries if entry.catalog and entry.oid]
    named = source.fetch(statements.identities([(e.catalog, e.oid) for e in objects]))
    found = dest.fetch(statements.there([(kind, name) for _, kind, name in named]))
    places = [named[place - 1][0] for (place,) in found]
    there = {objects[place - 1].number for place in places}
    relations = {e.number for e in wanted.entries if e.kind in _RELATIONS}

    def belongs_there(entry: Entry) -> bool:
        """Return whether an entry is one of a table, or of another object, that is there."""
        if entry.kind not in _OF_TABLES:
            return False
        needed = entry.needs & relations if entry.needs & relations else entry.needs
        # What ties two tables together is made where one of them is.
        of = all if entry.kind in ("FK CONSTRAINT", "TABLE ATTACH", "INDEX ATTACH") else any
        return bool(needed) and of(number in there for number in needed)

    for entry in wanted.entries:  # comments come behind what they are about
        if belongs_there(entry):
            there.add(entry.number)
    return tuple(entry for entry in wanted.entries if entry.number not in there)


# --------------------------------------------------------------------------------- the programs


@dataclass(frozen=True, slots=True)
class Tools:
    """pg_dump and pg_restore of one version."""

    folder: Path
    libraries: Path | None
    major: int

    def run(self, program: str, arguments: Sequence[str], **more: str) -> str:
        """Run one of them and return what it prints; raises CopyFailed with its last words.

        `more` goes into its environment, where no other user of the machine can read it.
        """
        # What a service file says would come before what the connection was made with.
        own = {name: value for name, value in os.environ.items() if "PGSERVICE" not in name}
        environment = {**own, **more, "LC_ALL": "C"}
        if self.libraries is not None:
            environment["LD_LIBRARY_PATH"] = str(self.libraries)
        done = subprocess.run(
            [str(self.folder / program), *arguments],
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode == 0:
            return done.stdout
        words = [line for line in done.stderr.splitlines() if line.strip()]
        words = [line for line in words if "error:" in line] or words[-1:]
        raise CopyFailed(
            f"{program} failed", detail=printable(words[0]) if words else None, side="source"
        )


def find(source_major: int) -> Tools:
    """Return programs that can read a source of that version; raises PlanRefused without any.

    pg_dump reads servers that are as old as itself or older. The oldest that will do writes what
    the oldest dest can read. What is on PATH comes first among those of one version.
    """
    found: list[Tools] = []
    for tools in _candidates():
        if tools.major == source_major:
            return tools
        found.append(tools)
    able = [tools for tools in found if tools.major >= source_major]
    if able:
        return min(able, key=lambda tools: tools.major)
    newest = max((tools.major for tools in found), default=None)
    raise PlanRefused(
        f"there is no pg_dump that reads PostgreSQL {source_major}"
        + (f"; the newest one here is {newest}" if newest is not None else ""),
        hint="Install the client programs of PostgreSQL in that version or a newer one (Debian: "
        f"postgresql-client-{source_major}), or copypipe[demo]; or make the tables yourself, and "
        "give --no-schema.",
    )


_VERSION = re.compile(r"pg_dump \(PostgreSQL\) (\d+)")


# Where Debian's packages put each version (postgresql-common, pg_wrapper(1)).
_DEBIAN = Path("/usr/lib/postgresql")


def _candidates() -> Iterable[Tools]:
    path = shutil.which("pg_dump")
    if path is not None and Path(path).resolve().name == "pg_wrapper":
        # That would start one of these, by way of Perl, which takes longer than the program itself.
        for folder in _DEBIAN.glob("*/bin"):
            if _has_both(folder) and folder.parent.name.isdecimal():
                yield Tools(folder, None, int(folder.parent.name))
    elif path is not None:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        if version := _VERSION.match(said.stdout):
            yield Tools(Path(path).parent, None, int(version[1]))
    for binaries in launcher.find_all():
        if _has_both(binaries.bindir):
            yield Tools(binaries.bindir, binaries.libdir, binaries.major)


def _has_both(folder: Path) -> bool:
    return all(os.access(folder / each, os.X_OK) for each in ("pg_dump", "pg_restore"))


def dump(
    source: Session,
    tools: Tools,
    snapshot: str | None,
    folder: Path,
    without: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write the definitions of the source's database into an archive, as of a snapshot, or of now.

    pg_dump locks all tables (ACCESS SHARE), for which the role needs SELECT on them; `without` are
    those that it lacks that for. Raises CopyFailed where pg_dump fails.
    """
    archive = folder / "schema.dump"
    try:
        tools.run(
            "pg_dump",
            [
                "--format=custom",
                "--schema-only",
                "--no-tablespaces",
                "--encoding=UTF8",
                *[f"--exclude-table={spelled(*name)}" for name in without],
                *([f"--role={role}"] if (role := source.settings.get("role")) else []),
                f"--lock-wait-timeout={LOCK_SECONDS * 1000}",
                *([f"--snapshot={snapshot}"] if snapshot is not None else []),
                f"--file={archive}",
            ],
            **_environment(source),
        )
    except CopyFailed as error:
        if error.detail and "canceling statement due to" in error.detail:
            error.hint = (
                "Somebody has locked a table of that database, or waits for such a lock (ALTER "
                "TABLE, VACUUM FULL): run it again when that is over, or give --no-schema."
            )
        raise
    return archive


def _environment(session: Session) -> dict[str, str]:
    """Return what leads libpq to the server of a session, its password included."""
    info = session.conn.info
    chosen = {
        **info.get_parameters(),
        # One of several hosts may have been chosen.
        "host": info.host,
        "hostaddr": info.hostaddr,
        "port": str(info.port),
        "user": info.user,
        "dbname": info.dbname,
        "password": info.password,
        "application_name": session.application_name,
    }
    known = {
        option.keyword.decode(): option.envvar.decode()
        for option in pq.Conninfo.get_defaults()
        if option.envvar
    }
    # A literal is read at the dest as the standard has it.
    chosen["options"] = f"{chosen.get('options') or ''} -c standard_conforming_strings=on".strip()
    found = {known[name]: value for name, value in chosen.items() if value and name in known}
    return {name: value for name, value in found.items() if "PGSERVICE" not in name}


def script(
    archive: Path,
    tools: Tools,
    wanted: Sequence[Entry],
    section: Section,
    *,
    owner: bool = False,
    acl: bool = False,
) -> str:
    """Return the statements of these entries, to be run in one transaction; "" for none."""
    listing = archive.with_name(f"{section}.list")
    listing.write_text("".join(f"{entry.number};\n" for entry in wanted))
    options = [
        f"--section={section}",
        f"--use-list={listing}",
        *_unplaced(tools),
        "--file=-",
        *([] if owner else ["--no-owner"]),
        *([] if acl else ["--no-acl"]),
    ]
    return runnable(tools.run("pg_restore", [*options, str(archive)]))


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in an archive."""

    entries: tuple[Entry, ...]
    _archive: Path
    _tools: Tools
    _behind: frozenset[int]
    """The numbers of those that follow the rows (post-data)."""
    _told: str
    """All of their statements, each behind a header that tells its number."""
    _owner: bool

    def behind(self, wanted: Sequence[Entry]) -> dict[int, str]:
        """Return the statements of those of these entries that follow the rows, by their numbers.

        A comment of a user may look like a header too. Where the numbers are not just those that
        there are, each entry is asked for by itself.
        """
        pieces = _TOLD.split(self._told)
        found = dict(zip(map(int, pieces[1::2]), pieces[2::2], strict=True))
        numbers = [entry.number for entry in wanted if entry.number in self._behind]
        if len(found) * 2 + 1 == len(pieces) and found.keys() == self._behind:
            return {number: found[number].strip() for number in numbers}
        alone = (
            (number, _behind(self._archive, self._tools, self._owner, number)) for number in numbers
        )
        return {number: _TOLD.split(text, maxsplit=1)[2].strip() for number, text in alone}


def read(archive: Path, tools: Tools, *, owner: bool = False) -> Contents:
    """Return what is in an archive; runs pg_restore thrice, side by side.

    With `owner` what follows the rows is given the owners that it has at the source.
    """
    options = (["--list", "--verbose"], ["--list", "--section=post-data"])
    with ThreadPoolExecutor() as pool:
        listed, behind = (
            pool.submit(tools.run, "pg_restore", [*each, str(archive)]) for each in options
        )
        told = pool.submit(_behind, archive, tools, owner)
        numbers = frozenset(entry.number for entry in parse(behind.result()))
        return Contents(parse(listed.result()), archive, tools, numbers, told.result(), owner)


# What precedes the statements of an entry (_printTocEntry in pg_backup_archiver.c).
_TOLD = re.compile(
    r"^--\n-- TOC entry (\d+) \(class \d+ OID \d+\)\n(?:-- Dependencies: [\d ]+\n)?"
    r"-- Name: [^\n]*\n(?:-- Data Pos: \d+\n)?--\n",
    re.MULTILINE,
)


def _behind(archive: Path, tools: Tools, owner: bool, number: int | None = None) -> str:
    """Return the statements of all entries that follow the rows, or of one of them."""
    options = []
    if number is not None:
        listing = archive.with_name("behind.list")
        listing.write_text(f"{number};\n")
        options = [f"--use-list={listing}"]
    options += ["--section=post-data", "--no-acl", *_unplaced(tools)]
    options += [] if owner else ["--no-owner"]
    return _ENDS.sub("", tools.run("pg_restore", [*options, "--verbose", "--file=-", str(archive)]))


def _unplaced(tools: Tools) -> list[str]:
    """Return the options that leave it to the dest where and how tables lie."""
    return ["--no-tablespaces", *(["--no-table-access-method"] if tools.major >= 15 else [])]


# What follows the last entry (RestoreArchive in pg_backup_archiver.c).
_ENDS = re.compile(
    r"(?:\n-- Completed on [^\n]*\n)?\n--\n-- PostgreSQL database dump complete\n--\n"
    r"\s*(?:\\unrestrict \w+\s*)?\Z"
)


_HEADER_ENDS = "\n--\n-- Name: "
_RESTRICT = re.compile(r"^\\restrict (\w+)$", re.MULTILINE)


def runnable(text: str) -> str:
    """Return a script without what psql alone understands, and without its settings.

    Both stand before the first entry: what looks like them further down belongs to a function. The
    settings are those that our own transactions make (`check_function_bodies` besides), but for
    timeouts, of which an older server does not know all.
    """
    header, found, rest = text.partition(_HEADER_ENDS)
    if not found:
        return ""
    if key := _RESTRICT.search(header):
        rest = rest.rstrip("\n").removesuffix(f"\\unrestrict {key[1]}")
    return f"SET LOCAL check_function_bodies = off;\n{_HEADER_ENDS}{rest}"

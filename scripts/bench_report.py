"""What scripts/bench.py found: kept as JSON, told as tables, charts, and targets hit or missed."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import comb
from pathlib import Path
from typing import Any

import charts
from bench_servers import LINKS, SHAPES
from bench_ways import (
    ASYNCPG,
    COMPILED,
    COPY_IN,
    COPY_OUT,
    INSERTS,
    INTERPRETED,
    LIBPQ,
    PSQL,
    PSQL_TEXT,
    PSYCOPG,
    VALUES,
    WAYS,
    Way,
)

MB = 1_000_000
MIB = 1024 * 1024

# The order of rows and bars.
CONTESTANTS = (PSQL, PSQL_TEXT, PSYCOPG, ASYNCPG, LIBPQ, INTERPRETED, COMPILED)
STARTS = (INSERTS, VALUES, PSQL, COMPILED, INTERPRETED)
GROWING = (PSQL, INTERPRETED, COMPILED)

# What a verdict needs: with less data a ratio tells of the start-up alone, with fewer pairs of
# chance.
FEWEST_BYTES = 250 * MB
FEWEST_PAIRS = 11
# The share of a median's interval, at least; with few pairs it is less, and said so.
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one way, or that it failed."""

    part: str
    link: str
    table: str
    way: str
    round: int
    rows: int
    bytes: int
    wall: float | None
    cpu: float | None
    rss: int | None


@dataclass(frozen=True, slots=True)
class Fault:
    """One run into an error of the dest."""

    link: str
    way: str
    transport: str
    seconds: float
    """From the dest's error to the end of the source's backend, by the servers' logs."""
    bytes: int | None
    """Read of the source after the error, at most; None where nobody can tell."""


@dataclass(slots=True)
class Results:
    """Everything that was found."""

    about: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write all of it."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> Results:
        """Read what `save` wrote."""
        found = json.loads(path.read_text())
        runs = [Run(**run) for run in found["runs"]]
        faults = [Fault(**fault) for fault in found["faults"]]
        return Results(found["about"], found["notes"], runs, faults)

    def find(self, **wanted: object) -> list[Run]:
        """Return the runs whose fields are as wanted and that did not fail."""
        return [run for run in self._all(wanted) if run.wall is not None]

    def failed(self, **wanted: object) -> bool:
        """Return whether one of the runs failed whose fields are as wanted."""
        return any(run.wall is None for run in self._all(wanted))

    def _all(self, wanted: Mapping[str, object]) -> list[Run]:
        return [
            run
            for run in self.runs
            if all(getattr(run, name) == value for name, value in wanted.items())
        ]

    def median(self, metric: str, **wanted: object) -> float | None:
        """Return the median of a metric, None without a run."""
        found = [getattr(run, metric) for run in self.find(**wanted)]
        return statistics.median(found) if found else None

    def ratios(self, metric: str, way: Way, link: str, table: str) -> list[float]:
        """Return the ratios to `psql | psql` in binary, pair by pair: of the same round."""
        base = {run.round: run for run in self.main(PSQL, link, table)}
        return [
            getattr(run, metric) / getattr(base[run.round], metric)
            for run in self.main(way, link, table)
            if run.round in base
        ]

    def main(self, way: Way, link: str, table: str) -> list[Run]:
        """Return the runs of a way on one of the four tables."""
        return self.find(part="main", way=way.name, link=link, table=table)


@dataclass(frozen=True, slots=True)
class Median:
    """A median with an interval that needs no assumption about the distribution."""

    value: float
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def median(values: Sequence[float]) -> Median:
    """Return the median and the narrowest interval of order statistics that is sure enough.

    The k-th smallest and the k-th largest of n values hold the median between them but for
    2 P(fewer than k of n tosses are heads).
    """
    ordered = sorted(values)
    n = len(ordered)

    def confidence(k: int) -> float:
        return 1.0 - 2.0 * sum(comb(n, i) for i in range(k)) / 2.0**n

    fits = [k for k in range(1, n // 2 + 1) if confidence(k) >= CONFIDENCE]
    k = max(fits, default=1)
    return Median(statistics.median(ordered), ordered[k - 1], ordered[-k], max(0.0, confidence(k)))


# --- targets -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """A limit that a median must not exceed, for every link and table named."""

    way: Way
    links: Sequence[str]
    metric: str
    limits: dict[str, float]
    """By table."""


def _each(limit: float, **others: float) -> dict[str, float]:
    return {shape.name: others.get(shape.name, limit) for shape in SHAPES}


TARGETS = (
    Target(COMPILED, ("tcp", "unix"), "cpu", _each(0.75)),
    Target(COMPILED, ("tcp", "unix"), "wall", _each(1.10)),
    Target(INTERPRETED, ("tcp", "unix"), "cpu", _each(0.9, varying=2.0, users=1.0, wide=0.75)),
    Target(INTERPRETED, ("tcp", "unix"), "wall", _each(1.10, varying=1.3)),
    Target(COMPILED, ("tls",), "cpu", _each(1.0)),
    Target(COMPILED, ("tls",), "wall", _each(1.10)),
)
# By which link and transport an error of the dest is tried.
FAULTS = (("tcp", "socket"), ("tcp", "libpq"), ("unix", "socket"), ("tls", "tls"))
MOST_MEMORY = 64 * MIB
MOST_SECONDS = 2.0
MOST_BYTES_AFTER = 16 * MIB


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target, what was found, and whether it was hit."""

    what: str
    limit: str
    found: str
    hit: bool | None
    """None: not measured, or on too little data."""

    @property
    def word(self) -> str:
        """Return the verdict in a word."""
        return {True: "hit", False: "**miss**", None: "not judged"}[self.hit]


def ratio_verdict(results: Results, target: Target, link: str, table: str) -> Verdict:
    """Return the verdict on a target for one link and table."""
    ratios = results.ratios(target.metric, target.way, link, table)
    limit = target.limits[table]
    name = "client CPU" if target.metric == "cpu" else "wall"
    what = f"{target.way.title}, {LINKS[link]}: {name}"
    if results.failed(part="main", way=target.way.name, link=link, table=table):
        return Verdict(what, f"{limit:.2f}", "failed", False)
    if not ratios:
        return Verdict(what, f"{limit:.2f}", "-", None)
    found = median(ratios)
    size = min(run.bytes for run in results.main(target.way, link, table))
    enough = size >= FEWEST_BYTES and len(ratios) >= FEWEST_PAIRS
    return Verdict(what, f"{limit:.2f}", str(found), found.value <= limit if enough else None)


def other_verdicts(results: Results) -> list[Verdict]:
    """Return the verdicts on memory and on what happens after an error of the dest."""
    quick = bool(results.about["quick"])  # too little data to exceed a limit with
    found = []
    for way in (COMPILED, INTERPRETED):
        for link in LINKS:
            wanted = {"part": "memory", "way": way.name, "link": link}
            peak = max((run.rss or 0 for run in results.find(**wanted)), default=None)
            what = f"{way.title}, {LINKS[link]}: peak memory"
            verdict = _at_most(what, peak, MOST_MEMORY, lambda n: f"{n / MIB:.1f} MiB", quick)
            if results.failed(**wanted):
                verdict = replace(verdict, found="failed", hit=False)
            found.append(verdict)
    for link, transport in FAULTS:
        faults = [f for f in results.faults if (f.link, f.transport) == (link, transport)]
        what = f"{LINKS[link]}, --transport {transport}, after the dest's error: source"
        seconds = max((fault.seconds for fault in faults), default=None)
        size = max((fault.bytes or 0 for fault in faults), default=None)
        found += [
            _at_most(f"{what} gone", seconds, MOST_SECONDS, lambda s: f"{s:.2f} s", quick),
            _at_most(
                f"{what} read on", size, MOST_BYTES_AFTER, lambda n: f"{n / MIB:.1f} MiB", quick
            ),
        ]
    return found


def _at_most(
    what: str, found: float | None, limit: float, show: Callable[[float], str], quick: bool
) -> Verdict:
    if found is None:
        return Verdict(what, show(limit), "-", None)
    return Verdict(what, show(limit), show(found), None if quick else found <= limit)


# --- tables ------------------------------------------------------------------------------------


def blocks(results: Results) -> dict[str, str]:
    """Return every table as Markdown, by name; docs/performance.md takes them in."""
    made: dict[str, Callable[[Results], str]] = {
        "about": _about,
        "targets": _targets,
        "tables": _tables,
        "starts": _starts,
        "limits": _limits,
        "growth": _growth,
        "memory": _memory,
        "faults": _faults,
    }
    found = {name: make(results) for name, make in made.items()}
    for link in LINKS:
        found[link] = _link(results, link)
    return found


def markdown(results: Results) -> str:
    """Return all tables on one page."""
    found = blocks(results)
    titles = {
        "about": "On what",
        "targets": "Targets",
        "tables": "Tables",
        **{link: f"By {title}" for link, title in LINKS.items()},
        "limits": "The limits",
        "starts": "The ways people start from",
        "growth": "How the cost grows",
        "memory": "Memory",
        "faults": "After an error of the dest",
    }
    parts = [f"## {title}\n\n{found[name]}\n" for name, title in titles.items()]
    return "# What was measured\n\nWritten by `scripts/bench.py`.\n\n" + "\n".join(parts)


def _about(results: Results) -> str:
    lines = [f"- {name}: {value}" for name, value in results.about.items() if name != "quick"]
    if results.about["quick"]:
        lines.insert(0, "- **with `--quick`: too little data and too few pairs to judge by**")
    return "\n".join(lines + [f"- note: {note}" for note in results.notes])


def _targets(results: Results) -> str:
    """Return the verdicts: a row for each way, link and metric, then the others."""
    rows, all_of_them, pairs = [], [], []
    for target in TARGETS:
        for link in target.links:
            found = [ratio_verdict(results, target, link, table) for table in target.limits]
            cells = [f"{one.found}, at most {one.limit}: {one.word}" for one in found]
            rows.append((found[0].what, *cells))
            all_of_them += found
            pairs += [
                len(results.ratios(target.metric, target.way, link, table))
                for table in target.limits
            ]
    others = other_verdicts(results)
    all_of_them += others
    hits, misses, unjudged = (
        sum(one.hit is hit for one in all_of_them) for hit in (True, False, None)
    )
    fewest = min((number for number in pairs if number), default=0)
    sure = f"{median([0.0] * fewest).confidence:.0%}" if fewest else "-"
    return (
        f"{hits} hit, {misses} missed, {unjudged} not judged.\n\n"
        "Times `psql | psql` in binary, start-up included: the median of the ratios of at least "
        f"{fewest} pairs, and the order statistics between which the true median is with a "
        f"probability of {sure}.\n\n"
        + _table(("", *(_title(table) for table in _names())), rows)
        + "\n\n"
        + _table(
            ("", "found", "at most", ""),
            [(one.what, one.found, one.limit, one.word) for one in others],
        )
    )


def _tables(results: Results) -> str:
    rows = []
    for shape in SHAPES:
        if found := results.find(part="main", table=shape.name):
            run = found[0]
            average = f"{run.bytes / run.rows:.1f} B"
            rows.append((shape.title, f"{run.rows:,}", f"{run.bytes / MB:.0f} MB", average))
    return _table(("table", "rows", "data", "a row"), rows)


def _link(results: Results, link: str) -> str:
    """Return client CPU and wall of every way by this link, and ratios."""
    if not results.find(part="main", link=link):
        return "not measured"
    head = ("", *(_title(table) for table in _names()), "peak memory")
    parts = []
    for metric, name in (("cpu", "Client CPU"), ("wall", "Wall")):
        rows = []
        for way in CONTESTANTS:
            cells = [_cell(results, metric, way, link, table) for table in _names()]
            runs = results.find(part="main", way=way.name, link=link)
            peak = max((run.rss or 0 for run in runs), default=0)
            rows.append((way.title, *cells, f"{peak / MIB:.0f} MiB" if peak else "-"))
        parts.append(
            f"{name}, seconds (and the median of the pairs' ratios):\n\n{_table(head, rows)}"
        )
    return "\n\n".join(parts)


def _cell(results: Results, metric: str, way: Way, link: str, table: str) -> str:
    found = results.median(metric, part="main", way=way.name, link=link, table=table)
    if found is None:
        return "-"
    ratios = results.ratios(metric, way, link, table)
    return f"{found:.2f} ({statistics.median(ratios):.2f})" if ratios else f"{found:.2f}"


def _limits(results: Results) -> str:
    """Return what the servers need by themselves beside what whole copies take."""
    rows = []
    for table in _names():
        cells = [results.median("wall", part="limit", table=table, way=way.name) for way in LIMITS]
        for way in (PSQL, COMPILED, INTERPRETED):
            found = {"part": "main", "link": "unix", "table": table, "way": way.name}
            cells.append(results.median("wall", **found))
        rows.append((_title(table), *("-" if cell is None else f"{cell:.2f}" for cell in cells)))
    titles = [way.title for way in (*LIMITS, PSQL, COMPILED, INTERPRETED)]
    return "Wall, seconds; the copies by unix socket:\n\n" + _table(("", *titles), rows)


LIMITS = (COPY_OUT, COPY_IN)


def _starts(results: Results) -> str:
    runs = results.find(part="start")
    if not runs:
        return "not measured"
    rows = []
    for way in STARTS:
        cells = []
        for table in _names():
            found = {"part": "start", "way": way.name, "table": table}
            cpu, wall = results.median("cpu", **found), results.median("wall", **found)
            if cpu is None or wall is None:
                cells.append("-")
            else:
                cells.append(f"{cpu / runs[0].rows * 1e6:.1f} / {wall / runs[0].rows * 1e6:.1f}")
        rows.append((way.title, *cells))
    head = ("", *(_title(table) for table in _names()))
    return (
        f"{runs[0].rows:,} rows by TCP, once; microseconds a row of client CPU / wall, start-up "
        f"included:\n\n{_table(head, rows)}"
    )


def _growth(results: Results) -> str:
    parts = []
    for part, (title, _, x) in GROWTH.items():
        runs = results.find(part=part)
        rows = []
        for value in sorted({x(run) for run in runs}):
            same = [run for run in runs if x(run) == value]
            cells = []
            for way in GROWING:
                mine = [run for run in same if run.way == way.name]
                cpu = [run.cpu for run in mine if run.cpu is not None]
                wall = [run.wall for run in mine if run.wall is not None]
                both = (
                    f"{statistics.median(cpu):.2f} / {statistics.median(wall):.2f}" if mine else "-"
                )
                cells.append(both)
            size = f"{same[0].bytes / MB:.1f} MB"
            rows.append(
                (f"{same[0].rows:,}", size, f"{same[0].bytes / same[0].rows:.0f} B", *cells)
            )
        head = ("rows", "data", "a row", *(way.title for way in GROWING))
        table = _table(head, rows) if rows else "not measured"
        parts.append(f"{title} (client CPU / wall in seconds):\n\n{table}")
    return "\n\n".join(parts)


GROWTH: dict[str, tuple[str, str, Callable[[Run], float]]] = {
    "rows": ("More rows of 48 B", "rows", lambda run: run.rows),
    "bytes": ("More rows of 4 KB", "bytes", lambda run: run.bytes),
    # As many rows of a width as make the same number of bytes.
    "width": ("As many bytes in wider rows", "bytes a row", lambda run: _rounded(run)),
}


def _rounded(run: Run) -> int:
    return round(run.bytes / run.rows)


def _memory(results: Results) -> str:
    rows = []
    sizes = list(dict.fromkeys(run.table for run in results.find(part="memory")))
    for way in (PSQL, LIBPQ, INTERPRETED, COMPILED):
        for link, title in LINKS.items():
            peaks = [
                results.median("rss", part="memory", way=way.name, link=link, table=size)
                for size in sizes
            ]
            if any(peaks):
                cells = ["-" if peak is None else f"{peak / MIB:.0f}" for peak in peaks]
                rows.append((way.title, title, *cells))
    return "Peak memory of all programs of a way, MiB:\n\n" + _table(("", "by", *sizes), rows)


def _faults(results: Results) -> str:
    rows = []
    for link, way, transport in dict.fromkeys((f.link, f.way, f.transport) for f in results.faults):
        mine = [f for f in results.faults if (f.link, f.way, f.transport) == (link, way, transport)]
        sizes = [fault.bytes for fault in mine if fault.bytes is not None]
        read = f"{max(sizes) / MIB:.1f} MiB" if sizes else "not known"
        seconds = f"{max(fault.seconds for fault in mine):.2f} s"
        rows.append((WAYS[way].title, LINKS[link], transport, len(mine), seconds, read))
    head = ("", "by", "transport", "runs", "source's backend gone after", "read more")
    return "The worst of some runs:\n\n" + _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines)


def _escaped(cell: object) -> str:
    return str(cell).replace("|", "\\|")


def _names() -> list[str]:
    return [shape.name for shape in SHAPES]


def _title(table: str) -> str:
    return next(shape.title for shape in SHAPES if shape.name == table)


# --- files -------------------------------------------------------------------------------------


def write(results: Results, folder: Path) -> None:
    """Write JSON, tables and charts into the folder, and the tables into its page, if any.

    The page of docs/performance/ is docs/performance.md; what stands between
    `<!-- bench: NAME -->` and `<!-- end -->` is replaced.
    """
    results.save(folder / "results.json")
    (folder / "results.md").write_text(markdown(results))
    for link, title in LINKS.items():
        if results.find(part="main", link=link):
            (folder / f"{link}.svg").write_text(_bars(results, link, title))
    if results.find(part="rows"):
        (folder / "growth.svg").write_text(_lines(results))
    page = folder.with_suffix(".md")
    if page.exists():
        page.write_text(filled(page.read_text(), blocks(results)))


def filled(page: str, found: dict[str, str]) -> str:
    """Return a page with its tables replaced."""
    return re.sub(
        r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->)",
        lambda place: f"{place[1]}{found[place[2]]}\n{place[3]}",
        page,
        flags=re.DOTALL,
    )


def _bars(results: Results, link: str, title: str) -> str:
    groups = []
    for shape in SHAPES:
        found = [
            charts.Bar(
                way.title,
                way.colour,
                [
                    results.median(metric, part="main", link=link, table=shape.name, way=way.name)
                    for metric in ("cpu", "wall")
                ],
            )
            for way in CONTESTANTS
            if any(run.way == way.name for run in results.runs if run.part == "main")
        ]
        limit = results.median("wall", part="limit", table=shape.name, way=COPY_IN.name)
        groups.append(charts.Group(f"rows of {shape.title}", found, [None, limit]))
    size = results.find(part="main", link=link)[0].bytes / MB
    return charts.bars(
        f"Copying {size:.0f} MB by {title}",
        ("client CPU, seconds", "wall, seconds"),
        groups,
        "Dashed: the dest's own COPY FROM a local file. Medians; less is better.",
    )


def _lines(results: Results) -> str:
    plots = []
    for part, (title, axis, x) in GROWTH.items():
        for metric, name in (("cpu", "client CPU"), ("wall", "wall")):
            found = []
            for way in GROWING:
                runs = results.find(part=part, way=way.name)
                points = []
                for value in sorted({x(run) for run in runs}):
                    ys = [getattr(run, metric) for run in runs if x(run) == value]
                    points.append((float(value), statistics.median(ys)))
                if points:
                    found.append(charts.Line(way.title, way.colour, points))
            if found:
                plots.append(charts.Plot(f"{title}: {name}", axis, "s", found))
    return charts.lines("How the cost grows (TCP)", plots)

"""Every built-in type into every other: what arrives is what was meant, or nothing has changed.

The decisions and the statements are the engine's; the bytes are carried by the test itself, and for
a sample of the pairs by a real copy. The oracle is the text of the values and the servers' own
casts; it knows nothing of binary COPY. `make matrix` tries every pair in every way.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation

import psycopg
import pytest
from psycopg.sql import Composed

import copypipe
from copypipe import catalog, crossings, digests, readings, servers, slices
from copypipe.crossings import Asked, Crossing, Sides, Surroundings
from copypipe.errors import CopyFailed, CopypipeError, PlanRefused
from copypipe.requests import Endpoint
from copypipe.servers import Session
from copypipe.statements import copies, sessions
from copypipe.statements import digests as statements
from copypipe.tables import Table
from plugins.databases import PINNED, Database
from plugins.edges import EDGES, Edge, array

# A value that does not fit is a data exception to a server, NaN an unsupported feature; any other
# error is a fault of ours. What reads a text by request may call it a syntax error, or no table.
DOES_NOT_FIT = ("22", "0A")
CANNOT_BE_READ = (*DOES_NOT_FIT, "3F", "42", "XX")

SAME = Crossing("same", "the number of the row")

Rows = dict[int, str | None]


@dataclass
class Side:
    """One server: a table of one column for each type, and what is known about them."""

    database: Database
    session: Session
    """As the engine has it while it makes a plan."""
    carrier: psycopg.Connection
    """With the engine's settings."""
    oracle: psycopg.Connection
    """With the test's."""
    surroundings: Surroundings
    tables: dict[Edge, Table] = field(default_factory=dict)

    def make(self, edges: Sequence[Edge], *, filled: bool) -> None:
        side = self.database.side
        names = {edge: f"public.{side}{len(self.tables) + n}" for n, edge in enumerate(edges)}
        lines = [f"CREATE TABLE {names[e]} (n int4 PRIMARY KEY, v {e.name})" for e in edges]
        for edge in edges if filled else ():
            values = ["(0, NULL)", *(f"({n}, {quoted(v)})" for n, v in numbered(edge))]
            lines.append(f"INSERT INTO {names[edge]} VALUES {', '.join(values)}")
        self.database.execute(";".join(lines))
        for edge, name in names.items():
            self.tables[edge] = catalog.table(self.session, catalog.resolve(self.session, name))


@dataclass
class Outcome:
    """What became of a pair."""

    crossing: Crossing
    arrived: list[int] = field(default_factory=list)
    """The numbers of the rows that arrived, and were what they should be."""
    failed: list[int] = field(default_factory=list)
    """The numbers of those that raised an error."""

    @property
    def whole(self) -> bool:
        """Return whether all arrived together."""
        return bool(self.arrived) and not self.failed


@dataclass
class Matrix:
    """Both sides, and what was counted."""

    source: Side
    dest: Side
    counts: Counter[str] = field(default_factory=Counter)
    values: Counter[str] = field(default_factory=Counter)
    proofs: Counter[str] = field(default_factory=Counter)
    """The types of which there is no digest."""

    def make(self, edges: Sequence[Edge]) -> Sequence[Edge]:
        missing = [edge for edge in edges if edge not in self.source.tables]
        self.source.make(missing, filled=True)
        self.dest.make(missing, filled=False)
        return edges

    # ------------------------------------------------------------------- what the engine does

    def decide(self, here: Edge, there: Edge, asked: Asked = None) -> Crossing:
        of, to = self.source.tables[here].columns[1], self.dest.tables[there].columns[1]
        around = Sides(self.source.surroundings, self.dest.surroundings)
        crossing = crossings.decide(of.value, to.value, around, asked)
        if crossing.decision == "refuse":
            return crossing
        table = self.source.tables[here]
        (found,) = readings.castable(self.source.session, table, [(of, crossing)])
        return found

    def statements(
        self, here: Edge, there: Edge, crossing: Crossing, number: int | None
    ) -> tuple[Composed, Composed]:
        of, to = self.source.tables[here], self.dest.tables[there]
        columns = list(zip(of.columns, (SAME, crossing), strict=True))
        whole = slices.Whole()
        slice_ = whole if number is None else slices.Where(f"n = {number}", whole)
        form = "text" if crossing.decision == "text format" else "binary"
        return (
            copies.copy_out(copies.select(of, columns, slice_), form),
            copies.copy_in(to, ["n", "v"], form, freeze=False),
        )

    # -------------------------------------------------------------------------------- checking

    def check(self, here: Edge, there: Edge, asked: Asked = None) -> Outcome:
        """Let the values of one type cross to another; raises AssertionError for a wrong one."""
        found = Outcome(self.decide(here, there, asked))
        name = found.crossing.decision
        if found.crossing.by_request:
            name += f" by request ({asked})"
        self.counts[name] += 1
        if found.crossing.decision == "refuse":
            return found
        everything = list(range(len(here.values) + 1))
        if self.carry(here, there, found.crossing, None):
            found.arrived = everything
        else:
            for n in everything:
                came = self.carry(here, there, found.crossing, n)
                (found.arrived if came else found.failed).append(n)
            assert found.failed, f"{here.name} into {there.name}: failed together alone"
        self.values["arrived"] += len(found.arrived)
        self.values["failed"] += len(found.failed)
        if found.failed and (0 in found.failed or must_arrive(here, there, found.crossing)):
            value = here.values[found.failed[0] - 1] if found.failed[0] else None
            raise AssertionError(f"{here.name} into {there.name}: {value!r} failed")
        return found

    def carry(self, here: Edge, there: Edge, crossing: Crossing, number: int | None) -> bool:
        """Send the values, or one, and compare; return False where that raised an error."""
        out, into = self.statements(here, there, crossing, number)
        self.dest.carrier.execute("BEGIN")
        try:
            failed = self.send(out, into)
            if failed is None:
                self.compare(here, there, crossing, number)
        except psycopg.Error as error:
            pair = f"{here.name} into {there.name} ({crossing.decision})"
            raise AssertionError(f"{pair} arrived as what cannot come back: {error}") from error
        finally:
            self.dest.carrier.execute("ROLLBACK")
        if failed is not None:
            expected = CANNOT_BE_READ if crossing.by_request else DOES_NOT_FIT
            said = f"{here.name} into {there.name}: {failed!r}"
            assert (failed.sqlstate or "").startswith(expected), said
        return failed is None

    def send(self, out: Composed, into: Composed) -> psycopg.Error | None:
        """Carry the bytes; return the error of either server."""
        try:
            with self.source.carrier.cursor() as cursor, cursor.copy(out) as copy:
                data = b"".join(copy)
            with self.dest.carrier.cursor() as cursor, cursor.copy(into) as copy:
                copy.write(data)
        except psycopg.Error as error:
            return error
        return None

    def compare(self, here: Edge, there: Edge, crossing: Crossing, number: int | None) -> None:
        """Compare with what the servers' own casts make of the values, there and back."""
        pick = "true" if number is None else f"n = {number}"
        came = rows(self.dest.carrier, f"SELECT n, v::text FROM {self.name(there)} WHERE {pick}")
        sent, meant = self.meant(here, there, pick)
        loses = crossing.by_request and crossing.back is None
        back = {} if loses else self.back(here, there, pick)
        assert came.keys() == sent.keys(), f"{here.name} into {there.name}: other rows"
        for n, one in sent.items():
            pair = f"{here.name} into {there.name} ({crossing.decision}): {one!r}"
            as_meant = came[n] == meant[n] or same_value(here, came[n], meant[n])
            assert as_meant, f"{pair} arrived as {came[n]!r}, not as {meant[n]!r}"
            again = loses or back[n] == one or same_value(here, back[n], one)
            assert again, f"{pair} arrived as {came[n]!r}, came back as {back[n]!r}"
        self.prove(here, there, crossing, number)

    def prove(self, here: Edge, there: Edge, crossing: Crossing, number: int | None) -> None:
        """Have both servers compute the digest of what arrived, as the engine would."""
        of, to = self.source.tables[here].columns, self.dest.tables[there].columns
        columns = list(zip(of, to, (SAME, crossing), strict=True))
        pair = f"{here.name} into {there.name} ({crossing.decision})"
        try:
            forms = digests.forms(columns, Sides(self.source.surroundings, self.dest.surroundings))
        except PlanRefused:
            self.proofs[there.name] += 1
            return
        within = slices.Whole()
        slice_ = within if number is None else slices.Where(f"n = {number}", within)
        select = copies.select(
            self.source.tables[here], [(one, way) for one, _, way in columns], slice_
        )
        held = statements.held(self.dest.tables[there], ["n", "v"], slice_)
        sent, came = (
            connection.execute(statements.digest(rows)).fetchone()
            for connection, rows in (
                (self.source.carrier, forms.sent(select)),
                (self.dest.carrier, forms.held(held)),
            )
        )
        assert sent == came, f"{pair}: the digests differ of what arrived"

    def name(self, there: Edge) -> str:
        return self.dest.tables[there].full_name

    def meant(self, here: Edge, there: Edge, pick: str) -> tuple[Rows, Rows]:
        """Return the values of the source, as text, and cast to the dest's type, as text."""
        of = f"FROM {self.source.tables[here].full_name} WHERE {pick}"
        sent = rows(self.source.oracle, f"SELECT n, v::text {of}")
        if here.name == there.name:
            return sent, sent
        return sent, either_way(self.source.oracle, "v", there.name, of)

    def back(self, here: Edge, there: Edge, pick: str) -> Rows:
        """Return the values of the dest, cast to the source's type, as text."""
        of = f"FROM {self.name(there)} WHERE {pick}"
        if here.name == there.name:
            return rows(self.dest.carrier, f"SELECT n, v::text {of}")
        self.dest.carrier.execute("SAVEPOINT back")
        return either_way(self.dest.carrier, "v", here.name, of, "ROLLBACK TO SAVEPOINT back")

    # ----------------------------------------------------------------------------- real copies

    def copy(self, here: Edge, there: Edge, found: Outcome, asked: Asked = None) -> None:
        """Copy with the product: it does what the statements did, or changes nothing."""
        source, dest = self.source.tables[here].full_name, self.name(there)
        self.dest.database.execute(f"TRUNCATE {dest}; INSERT INTO {dest} VALUES (-1)")
        pair = f"{here.name} into {there.name} ({found.crossing.decision})"
        expected: type[CopypipeError] | None = None
        if found.crossing.decision == "refuse":
            expected = PlanRefused
        elif not found.whole:
            expected = CopyFailed

        options = {"cast": {"cast": ["v"]}, "lossy": {"allow_lossy": ["v"]}, None: {}}[asked]
        failed = self.failure(source, dest, options)
        came = rows(self.dest.oracle, f"SELECT n, v::text FROM {dest}")
        self.dest.database.execute(f"TRUNCATE {dest}")

        assert (failed and type(failed)) == expected, f"{pair}: {failed!r}"
        if failed is None:
            meant = self.meant(here, there, "true")[1]
            assert came.keys() == meant.keys(), pair
            for n, text in came.items():
                assert text == meant[n] or same_value(here, text, meant[n]), f"{pair}: {text!r}"
        else:
            assert came == {-1: None}, pair
        if isinstance(failed, PlanRefused):
            assert failed.detail.startswith("v: "), f"{pair}: {failed.detail}"

    def failure(
        self, source: str, dest: str, options: dict[str, list[str]]
    ) -> CopypipeError | None:
        sides = {"source": self.source.database.dsn, "dest": self.dest.database.dsn}
        try:
            copypipe.copy(source, into=dest, **sides, **options, all=True, yes=True)
        except CopypipeError as error:
            return error
        return None


def numbered(edge: Edge) -> Iterable[tuple[int, str]]:
    return enumerate(edge.values, 1)


def quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def rows(connection: psycopg.Connection, query: str) -> Rows:
    return dict(connection.execute(query).fetchall())


def either_way(
    connection: psycopg.Connection, value: str, to: str, of: str, undo: str | None = None
) -> Rows:
    """Cast by the server's cast, or by the text form where it has none."""
    try:
        return rows(connection, f"SELECT n, {value}::{to}::text {of}")
    except psycopg.errors.CannotCoerce:
        if undo is not None:
            connection.execute(undo)
        return rows(connection, f"SELECT n, {value}::text::{to}::text {of}")


def same_value(of: Edge, one: str | None, other: str | None) -> bool:
    """Return whether two texts are one value of that type."""
    if one is None or other is None:
        return False
    if of.name.startswith("numeric"):
        return as_numbers(one, other)
    if of.name.startswith(("char", "bpchar")):  # blanks at the end mean nothing
        return without_blanks(one) == without_blanks(other)
    return False


def without_blanks(text: str) -> str:
    return re.sub(r' *("|[,}]|$)', r"\1", text).replace('"', "")


def as_numbers(one: str, other: str) -> bool:
    """1.5 and 1.50 are one number, also inside of an array."""
    ours, theirs = (text.replace("{", ",").replace("}", ",").split(",") for text in (one, other))
    if len(ours) != len(theirs):
        return False
    return all(a == b or as_number(a, b) for a, b in zip(ours, theirs, strict=True))


def as_number(one: str, other: str) -> bool:
    with suppress(InvalidOperation):
        return Decimal(one) == Decimal(other)
    return False


def must_arrive(here: Edge, there: Edge, crossing: Crossing) -> bool:
    """Return whether no value may fail, where nothing was asked for."""
    return not crossing.by_request and (
        here == there
        or there.name.removesuffix("[]") in ("text", "varchar")
        or crossing.reason.endswith("every value fits")
    )


# ----------------------------------------------------------------------------------- fixtures


def _side(stack: ExitStack, database: Database) -> Side:
    endpoint = Endpoint(database.dsn, "test")
    session = stack.enter_context(servers.connected("source", endpoint, "matrix"))
    session.begin("READ COMMITTED", read_only=True, own_search_path=True)
    carrier, oracle = database.connect(), database.connect()
    ours = {**sessions.PINNED, "search_path": ""}
    for connection, settings in ((carrier, ours), (oracle, PINNED)):
        for name, value in settings.items():
            connection.execute("SELECT set_config(%s, %s, false)", [name, value])
    return Side(database, session, carrier, oracle, catalog.server(session).surroundings)


@pytest.fixture(scope="module")
def sides(shared_source: Database, shared_dest: Database) -> Iterator[tuple[Side, Side]]:
    with ExitStack() as stack:
        yield _side(stack, shared_source), _side(stack, shared_dest)


@pytest.fixture
def matrix(sides: tuple[Side, Side]) -> Matrix:
    return Matrix(*sides)


def known(matrix: Matrix) -> list[Edge]:
    """Return the types that both servers have; xml is in the catalog also where it is not built."""
    pair = (matrix.source, matrix.dest)
    major = min(side.database.server.major for side in pair)
    found = [edge for edge in EDGES if edge.since <= major]
    if not all(reads_xml(side) for side in pair):
        found = [edge for edge in found if edge.name != "xml"]
    return found


def reads_xml(side: Side) -> bool:
    with suppress(psycopg.errors.FeatureNotSupported):
        return bool(side.oracle.execute("SELECT '<a/>'::xml IS NOT NULL").fetchone())
    return False


@pytest.fixture
def edges(matrix: Matrix) -> Sequence[Edge]:
    return matrix.make(known(matrix))


@pytest.fixture
def arrays(matrix: Matrix) -> Sequence[Edge]:
    return matrix.make([array(edge) for edge in known(matrix)])


def told(capsys: pytest.CaptureFixture[str], what: str, matrix: Matrix) -> None:
    counts = ", ".join(f"{name} {count}" for name, count in matrix.counts.most_common())
    values = ", ".join(f"{count} values {name}" for name, count in matrix.values.most_common())
    with capsys.disabled():
        sys.stdout.write(f"\n{what}: {counts}; {values}\n")


def check_all(
    matrix: Matrix, pairs: Iterable[tuple[Edge, Edge]], asked: Asked = None
) -> dict[tuple[Edge, Edge], Outcome]:
    """Check pairs; a failure names every one that is wrong."""
    wrong, outcomes = [], {}
    for here, there in pairs:
        try:
            outcomes[here, there] = matrix.check(here, there, asked)
        except AssertionError as error:
            wrong.append(str(error).splitlines()[0])
    assert not wrong, "\n".join(wrong)
    return outcomes


def pairs_of(edges: Sequence[Edge], each: int = 1) -> list[tuple[Edge, Edge]]:
    """Return all pairs, or one of `each`, spread so that every type is there on both sides."""
    return [
        (here, there)
        for row, here in enumerate(edges)
        for place, there in enumerate(edges)
        if (row + place) % each == 0 or here == there
    ]


# -------------------------------------------------------------------------------------- tests


def test_every_base_type_of_the_catalog_is_in_the_matrix(
    matrix: Matrix, edges: Sequence[Edge]
) -> None:
    here = {
        side.database.scalar("SELECT to_regtype(%s)::oid", [edge.name])
        for side in (matrix.source, matrix.dest)
        for edge in edges
    }
    for side in (matrix.source, matrix.dest):
        missing = side.database.fetch(
            "SELECT typname FROM pg_type WHERE typtype IN ('b', 'r', 'm') AND oid < 10000"
            " AND typarray <> 0 AND NOT oid = ANY (%s)",
            [list(here)],
        )
        assert {name for (name,) in missing} <= NEVER_READ | LATER


# Types that no server reads back, and those that one of the two servers does not know yet.
NEVER_READ = {"gtsvector"}
LATER = {"xml", "oid8"}


def test_every_type_into_every_other(
    matrix: Matrix, edges: Sequence[Edge], capsys: pytest.CaptureFixture[str]
) -> None:
    check_all(matrix, pairs_of(edges))

    told(capsys, f"{len(edges)} x {len(edges)} types", matrix)
    assert {"same", "cast", "text value", "text format", "refuse"} <= matrix.counts.keys()


def test_arrays_of_every_type_into_every_other(
    matrix: Matrix, arrays: Sequence[Edge], capsys: pytest.CaptureFixture[str]
) -> None:
    check_all(matrix, pairs_of(arrays))

    told(capsys, f"{len(arrays)} x {len(arrays)} arrays", matrix)
    assert {"same", "cast", "text value", "text format", "refuse"} <= matrix.counts.keys()


@pytest.mark.parametrize("asked", ["cast", "lossy"])
@pytest.mark.one_of(2)
def test_some_casts_by_request(
    matrix: Matrix, edges: Sequence[Edge], asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    check_all(matrix, pairs_of(edges, each=37), asked)

    told(capsys, f"a sample of {len(edges)} x {len(edges)} types, {asked} asked for", matrix)


@pytest.mark.parametrize("asked", [None, "cast", "lossy"])
@pytest.mark.one_of(2)
def test_a_copy_does_what_was_decided(matrix: Matrix, edges: Sequence[Edge], asked: Asked) -> None:
    check_copies(matrix, pairs_of(edges, each=12), asked, of_each=2)


def check_copies(
    matrix: Matrix,
    pairs: Sequence[tuple[Edge, Edge]],
    asked: Asked = None,
    of_each: int | None = None,
) -> None:
    """Copy between pairs by the product; of each class `of_each` that arrive and that fail."""
    done: Counter[tuple[str, bool]] = Counter()
    for here, there in pairs:
        decision = matrix.decide(here, there, asked).decision
        if of_each is not None and min(done[decision, True], done[decision, False]) >= of_each:
            continue
        found = matrix.check(here, there, asked)
        whole = found.whole
        done[decision, whole] += 1
        if of_each is None or done[decision, whole] <= of_each:
            matrix.copy(here, there, found, asked)
    assert {decision for decision, _ in done} >= {"same", "cast", "text value", "text format"}


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("asked", ["cast", "lossy"])
@pytest.mark.parametrize("of", ["edges", "arrays"])
def test_every_cast_by_request(
    matrix: Matrix,
    of: str,
    asked: Asked,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edges = request.getfixturevalue(of)
    check_all(matrix, pairs_of(edges), asked)

    told(capsys, f"{len(edges)} x {len(edges)} {of}, {asked} asked for", matrix)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("of", ["edges", "arrays"])
def test_every_copy_does_what_was_decided(
    matrix: Matrix, of: str, request: pytest.FixtureRequest
) -> None:
    pairs = pairs_of(request.getfixturevalue(of))
    check_copies(
        matrix,
        [(here, there) for here, there in pairs if matrix.decide(here, there).decision != "refuse"],
    )


# ------------------------------------------------------------------------------ planted faults


def test_the_matrix_sees_what_is_sent_though_it_means_something_else(
    matrix: Matrix, edges: Sequence[Edge], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_name = {edge.name: edge for edge in edges}
    planted = Crossing("same", "planted")
    monkeypatch.setattr(crossings, "decide", lambda *_: planted)

    for here, there in [
        ("int8", "numeric"),
        ("int8range", "int4range"),
        ("numeric", "numeric(10,2)"),
        ("time", "time(0)"),
        ("date", "int4"),
    ]:
        with pytest.raises(AssertionError, match="arrived as"):
            matrix.check(by_name[here], by_name[there])


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (crossings.FLOAT8, crossings.INT4),
        (crossings.INT4, crossings.FLOAT4),
        (crossings.INT8, crossings.FLOAT8),
        (crossings.FLOAT8, crossings.FLOAT4),
        (crossings.TIMESTAMPTZ, crossings.DATE),
        (crossings.TEXT, crossings.NAME),
    ],
)
def test_the_matrix_sees_a_cast_that_loses(
    matrix: Matrix,
    edges: Sequence[Edge],
    monkeypatch: pytest.MonkeyPatch,
    here: int,
    there: int,
) -> None:
    monkeypatch.setattr(crossings, "EXACT", {**crossings.EXACT, (here, there): "planted"})
    of = [
        (one, other)
        for one, other in pairs_of(edges)
        if matrix.source.tables[one].columns[1].type_oid == here
        and matrix.dest.tables[other].columns[1].type_oid == there
    ]

    with pytest.raises(AssertionError, match="arrived as"):
        check_all(matrix, of)


def test_the_matrix_sees_a_length_that_is_not_measured(
    matrix: Matrix, edges: Sequence[Edge], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_name = {edge.name: edge for edge in edges}
    decide = crossings.decide
    monkeypatch.setattr(crossings, "decide", lambda *of: replace(decide(*of), longest=None))

    with pytest.raises(AssertionError, match="came back"):
        matrix.check(by_name["text"], by_name["varchar(5)"])

"""Who may import whom: the levels of docs/design.md, read from the source with `ast`.

A room is a module or a package right below `copypipe`. It imports from lower levels only, in
whatever form; the files of one package are one room.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

PACKAGE = "copypipe"

# Also the rooms that are not built yet.
LEVELS = {
    0: ("errors", "crashpoints", "airflow_provider"),
    1: ("types", "slices", "expressions", "workers"),
    2: ("tables", "crossings", "requests", "horizons", "parts"),
    3: ("addresses", "failures", "events", "statements"),
    4: ("servers", "launcher", "advances"),
    5: ("catalog", "relay", "schemas"),
    6: (
        "ledger",
        "snapshots",
        "hazards",
        "swaps",
        "readings",
        "digests",
        "keys",
        "privileges",
        "watches",
        "inventory",
    ),
    7: ("remarks", "modes", "symptoms", "steps"),
    8: ("plans", "journals"),
    9: ("transfers", "needs", "comparisons"),
    10: ("attempts", "keepers", "checkups"),
    11: ("backfills", "verdicts", "migrations", "calendars"),
    12: ("reporting", "pages", "config"),
    13: ("api", "demo"),
    14: ("cli", "airflow"),
    # The two doors: what `import copypipe` and `python -m copypipe` open.
    15: ("__init__", "__main__"),
}
DOORS = 15
ROOMS = {room: level for level, rooms in LEVELS.items() for room in rooms}

# Third-party packages that one room alone imports.
EXCLUSIVE = {
    "typer": "cli",
    "tqdm": "reporting",
    "tenacity": "attempts",
    "airflow": "airflow",
    "jinja2": "pages",
    "psycopg.sql": "statements",
}
# Names of an exclusive package that others may import: types of what they are handed.
SHARED = {"psycopg.sql.Composed", "psycopg.sql.Composable"}

UNREADABLE = "?"


@dataclass(frozen=True)
class Import:
    """One imported module, or name of a module, as a dotted path."""

    line: int
    target: str


def violations(sources: Mapping[str, str]) -> list[str]:
    """Return what breaks the rules among files given as path ("copypipe/x.py") -> source."""
    found = []
    for path, source in sorted(sources.items()):
        room = _room_of_file(path)
        if room not in ROOMS:
            found.append(f"{path}: unknown room {room!r}")
            continue
        for imported in sorted(_imports(path, source), key=lambda each: each.line):
            complaint = _complaint(room, imported.target)
            if complaint:
                found.append(f"{path}:{imported.line}: {complaint}")
    return found


def _room_of_file(path: str) -> str:
    return PurePosixPath(path).relative_to(PACKAGE).with_suffix("").parts[0]


def _complaint(room: str, target: str) -> str | None:
    if target == UNREADABLE:
        # Nothing is above a door: whatever it opens is lower.
        return None if ROOMS[room] == DOORS else "imports by a name that is not a literal"
    if target == PACKAGE or target.startswith(PACKAGE + "."):
        return _complaint_about_level(room, target)
    for package, owner in EXCLUSIVE.items():
        if (target == package or target.startswith(package + ".")) and room != owner:
            return None if target in SHARED else f"only {owner!r} imports {package}"
    return None


def _complaint_about_level(room: str, target: str) -> str | None:
    # `from copypipe import name`: what is no room is a name of the package's own __init__, which
    # runs at any import and defines __version__ and its like itself.
    names = target.split(".")[1:]
    if len(names) == 1 and names[0].startswith("__") and names[0] not in ROOMS:
        return None
    other = names[0] if names and (names[0] in ROOMS or len(names) > 1) else "__init__"
    if other not in ROOMS:
        return f"imports from an unknown room {other!r}"
    if other != room and ROOMS[other] >= ROOMS[room]:
        return f"{room!r} (level {ROOMS[room]}) imports {other!r} (level {ROOMS[other]})"
    return None


def _imports(path: str, source: str) -> Iterator[Import]:
    tree = ast.parse(source, path)
    aliases = _aliases(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from (Import(node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom():
                base = _absolute("." * node.level + (node.module or ""), path)
                for alias in node.names:
                    yield Import(node.lineno, base if alias.name == "*" else f"{base}.{alias.name}")
            case ast.Attribute():
                dotted = _dotted(node, aliases)
                if dotted in EXCLUSIVE:
                    yield Import(node.lineno, dotted)
            case ast.Call() if _dotted(node.func, aliases) in _IMPORTERS:
                yield Import(node.lineno, _literal_target(node, path))


_IMPORTERS = {"importlib.import_module", "builtins.__import__", "__import__"}


def _aliases(tree: ast.AST) -> dict[str, str]:
    """Return what each imported name stands for, as far as these rules care."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                aliases[name] = alias.name if alias.asname else name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return aliases


def _dotted(node: ast.expr, aliases: Mapping[str, str]) -> str:
    """Return `a.b.c` for such an expression, its first name resolved; "" for any other."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (base := _dotted(node.value, aliases)):
        return f"{base}.{node.attr}"
    return ""


def _literal_target(call: ast.Call, path: str) -> str:
    """Return the module that import_module() or __import__() is told, if it can be read."""
    arguments = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "name")]
    match arguments:
        case [ast.Constant(value=str(name)), *_]:
            return _absolute(name, path)
    return UNREADABLE


def _absolute(name: str, path: str) -> str:
    """Return the absolute form of a possibly relative import in the file at `path`."""
    level = len(name) - len(name.lstrip("."))
    if not level:
        return name
    package = PurePosixPath(path).parts[:-1]
    base = package[: len(package) - level + 1]
    return ".".join([*base, *([name[level:]] if name[level:] else [])])

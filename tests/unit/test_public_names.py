"""What `copypipe` offers, by name; tests/typing/api.py says the same in types."""

import inspect
import subprocess
import sys

import pytest

import copypipe

NAMES = [
    "Backfilled",
    "CommitUnknown",
    "ConnectionLost",
    "CopyFailed",
    "CopypipeError",
    "Differs",
    "Failed",
    "LoginRefused",
    "Migrated",
    "Moved",
    "NothingToCopy",
    "PlanRefused",
    "SliceBusy",
    "TooEarly",
    "Transferred",
    "TransientError",
    "UsageError",
    "Verdict",
    "__version__",
    "backfill",
    "copy",
    "migrate",
    "verify",
]
OPTIONS = (
    "table, source, dest, into, day, month, start, stop, all, where, query, columns, exclude,"
    " cast, allow_lossy, by, timezone, mode, clear, swap, key, merge_deletes, again, sequences,"
    " accept, min_ratio, allow_empty, fail_on_empty, rate_limit, verify, transport,"
    " stall_timeout, wait_lock, retries, retry_delay, settle, ledger, ascending, allow_reverse,"
    " source_set, dest_set, yes, notices, listener"
)


def test_public_names() -> None:
    assert sorted(copypipe.__all__) == NAMES


def test_dir_lists_them_before_they_are_used() -> None:
    script = "import copypipe; print(*dir(copypipe))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_there(name: str) -> None:
    assert getattr(copypipe, name) is not None


def test_a_star_import_brings_them() -> None:
    names: dict[str, object] = {}
    exec("from copypipe import *", names)  # noqa: S102 - a star is allowed at a module's top only
    assert sorted(names.keys() - {"__builtins__"}) == NAMES


def test_no_other_name() -> None:
    with pytest.raises(AttributeError, match="module 'copypipe' has no attribute 'paste'"):
        _ = copypipe.paste


def test_options_of_copy() -> None:
    parameters = inspect.signature(copypipe.copy).parameters
    assert list(parameters) == OPTIONS.split(", ")
    keyword_only = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert keyword_only == OPTIONS.split(", ")[1:]
    needed = [p.name for p in parameters.values() if p.default is p.empty]
    assert needed == ["table", "source", "dest"]


def test_what_backfill_has_in_common_with_copy() -> None:
    copy, backfill = (inspect.signature(f).parameters for f in (copypipe.copy, copypipe.backfill))
    common = copy.keys() & backfill.keys()
    assert all(copy[name].default == backfill[name].default for name in common)
    own = {"every", "jobs", "order", "fail_fast", "min_slice", "snapshot", "max_replica_lag"}
    assert backfill.keys() - copy.keys() == own


def test_what_verify_has_in_common_with_copy() -> None:
    both = (
        inspect.signature(copypipe.copy).parameters,
        inspect.signature(copypipe.verify).parameters,
    )
    common = both[0].keys() & both[1].keys()
    assert all(both[0][name].default == both[1][name].default for name in common)
    own = {"every", "jobs", "show_rows", "record", "repair"}
    assert both[1].keys() - both[0].keys() == own


def test_every_option_and_error_is_documented() -> None:
    assert copypipe.copy.__doc__
    for name in NAMES:
        if isinstance(found := getattr(copypipe, name), type):
            assert found.__doc__, name

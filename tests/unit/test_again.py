"""The command line that settles a run: the same words, absolute bounds, no secret."""

import shlex
from datetime import UTC, date, datetime
from typing import Any

import pytest
import typer.main

from copypipe.cli.again import again
from copypipe.cli.app import app
from copypipe.slices import DATE, TIMESTAMPTZ, Range, Slice, Where, Whole
from plugins.canary import CANARY

DAY = Range(
    "created_at",
    TIMESTAMPTZ,
    datetime(2018, 4, 28, 22, tzinfo=UTC),
    datetime(2018, 4, 29, 22, tzinfo=UTC),
    "Europe/Vienna",
    (date(2018, 4, 29), date(2018, 4, 30)),
)
MONTH = Range(
    "d", DATE, date(2018, 4, 1), date(2018, 5, 1), None, (date(2018, 4, 1), date(2018, 5, 1))
)
HOURS = Range("created_at", TIMESTAMPTZ, DAY.start, DAY.stop, "UTC")

CASES: dict[str, tuple[str, Slice, str]] = {
    "yesterday": ("users --day yesterday", DAY, "users --day 2018-04-29"),
    "a day of a zone": (
        "users --timezone Europe/Vienna --day -1d",
        DAY,
        "users --timezone Europe/Vienna --day 2018-04-29",
    ),
    "a month": (
        "users --month 2018-04 --by d",
        MONTH,
        "users --by d --from 2018-04-01 --to 2018-05-01",
    ),
    "hours": (
        "users --from 2018-04-29T00:00+02:00 --to 2018-04-30T00:00+02:00",
        HOURS,
        "users --from 2018-04-28T22:00:00+00:00 --to 2018-04-29T22:00:00+00:00",
    ),
    "all": ("users --all --yes", Whole(), "users --all --yes"),
    "a condition": (
        "users --where 'id > 7' --day today",
        Where("id > 7", DAY),
        "users --where 'id > 7' --day 2018-04-29",
    ),
    "choices, flags, and what is given again": (
        "users --day today --clear delete --exclude a --exclude b --json -q --retries 0",
        DAY,
        "users --exclude a --exclude b --clear delete --retries 0 --json --quiet --day 2018-04-29",
    ),
    "a merge": (
        "users --day today --mode merge --merge-deletes --key a --key 'b c' --dest-set x=1",
        DAY,
        "users --mode merge --key a --key 'b c' --merge-deletes --dest-set x=1 --day 2018-04-29",
    ),
    "what is added again": (
        "users --day today --mode append --again --accept triggers --accept cascade",
        DAY,
        "users --mode append --again --accept triggers --accept cascade --day 2018-04-29",
    ),
    "a password": (
        f"users --day today --dest postgresql://u:{CANARY}@h/d",
        DAY,
        "users --dest ... --day 2018-04-29",
    ),
}


@pytest.mark.parametrize(("words", "slice_", "expected"), CASES.values(), ids=CASES.keys())
def test_again(words: str, slice_: Slice, expected: str) -> None:
    group: Any = typer.main.get_command(app)
    context = group.commands["copy"].make_context("copy", shlex.split(words))

    assert again(context, slice_) == f"copypipe copy {expected}"

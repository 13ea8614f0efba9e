"""The command line that does the same once more, for whoever has to type it."""

from __future__ import annotations

import shlex
from collections.abc import Container, Iterator
from typing import Any

import typer

from copypipe.slices import Slice, range_of

# Said by the slice instead: "yesterday" will be another day tomorrow.
_SLICE = ("day", "month", "start", "stop")

_SIDES = ("source", "dest")

# What a command for many slices has, and one for a single slice has not.
_OF_MANY = (
    "redo",
    "every",
    "jobs",
    "order",
    "fail_fast",
    "min_slice",
    "snapshot",
    "max_replica_lag",
)


def again(context: typer.Context, slice_: Slice) -> str:
    """Return the command line of this run for a slice with absolute bounds.

    Connection strings are left out, since they may hold a password: dots stand in their place.
    """
    words = ["copypipe", str(context.info_name), *given(context, leave_out=_SLICE)]
    return shlex.join([*words, *_bounds(slice_)])


def copied_alone(context: typer.Context, slice_: Slice) -> str:
    """Return the command line that copies one slice of many, as `again`."""
    words = ["copypipe", "copy", *given(context, leave_out=(*_SLICE, *_OF_MANY))]
    return shlex.join([*words, *_bounds(slice_)])


def given(context: typer.Context, *, leave_out: Container[str]) -> list[str]:
    """Return the words of the command line, but for the parameters of these names."""
    click: Any = context  # typer hands out click's
    words: list[str] = []
    for parameter in click.command.params:
        source = click.get_parameter_source(parameter.name)
        if source is None or source.name != "COMMANDLINE" or parameter.name in leave_out:
            continue
        words += _words(parameter, click.params[parameter.name])
    return words


def _words(parameter: Any, value: Any) -> Iterator[str]:
    if parameter.param_type_name == "argument":
        yield str(value)
        return
    if parameter.is_flag:
        yield parameter.opts[0]
        return
    for one in value if parameter.multiple else (value,):
        yield parameter.opts[0]
        yield "..." if parameter.name in _SIDES else str(getattr(one, "value", one))


def _bounds(slice_: Slice) -> list[str]:
    around = range_of(slice_)
    if around is None:
        return []
    if around.numbers:
        # Joined: -1000 alone would be taken for options.
        first, last = around.numbers
        return [f"--from={first}", f"--to={last}"]
    start, stop = around.days or around.times
    if around.days is not None and (stop - start).days == 1:
        return ["--day", start.isoformat()]
    return ["--from", start.isoformat(), "--to", stop.isoformat()]

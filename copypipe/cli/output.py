"""Writing to stdout and stderr; errors become text and exit codes here and nowhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

import typer

from copypipe import reporting
from copypipe.errors import CopypipeError, Interrupted
from copypipe.slices import Slice


def say(line: str) -> None:
    """Write a result to stdout; a reader that has gone away changes nothing about the outcome."""
    try:
        print(line, flush=True)  # noqa: T201 - results belong on stdout
    except (OSError, ValueError):
        _silence(sys.stdout)


def log(line: str) -> None:
    """Write a line to stderr; one that is closed is no reason to fail."""
    try:
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - logs belong on stderr
    except (OSError, ValueError):
        _silence(sys.stderr)


def on_terminal() -> bool:
    """Return whether a person can be asked."""
    return bool(sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty())


def ask(question: str) -> bool:
    """Ask on stderr, which stdout's reader does not see; only y and yes mean yes."""
    print(f"{question} [y/N]: ", end="", file=sys.stderr, flush=True)  # noqa: T201 - as above
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _silence(stream: TextIO) -> None:
    """Send a stream nowhere, or the interpreter would fail when it flushes at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def error_text(error: CopypipeError, *, as_json: bool) -> str:
    """Return what stderr says of an error: some lines, or one of JSON."""
    return reporting.error_json(error) if as_json else str(error)


def log_failed(of: Slice, error: CopypipeError, what: str, *, as_json: bool) -> None:
    """Write to stderr what became of one slice of many, and why: some lines, or one of JSON."""
    if as_json:
        log(reporting.error_json(error, of))
        return
    for line in (f"{of} {what}:", *str(error).splitlines()):
        log(line)


ROLLED_BACK = "rolled back, the dest is as it was"


@contextmanager
def outcome(*, as_json: bool, interrupted: str = ROLLED_BACK) -> Iterator[None]:
    """Turn an error of the block into its text on stderr and its exit code.

    `interrupted` says what a signal leaves behind.
    """
    try:
        yield
    except CopypipeError as error:
        for line in error_text(error, as_json=as_json).splitlines():
            log(line)
        raise typer.Exit(error.exit_code) from None
    except (Interrupted, KeyboardInterrupt) as interrupt:
        code = interrupt.exit_code if isinstance(interrupt, Interrupted) else 130
        log(f"interrupted: {interrupted}")
        raise typer.Exit(code) from None

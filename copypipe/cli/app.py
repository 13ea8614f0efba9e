"""The commands, and what `--help` says about all of them."""

from __future__ import annotations

from typing import Annotated

import typer

from copypipe.cli import (
    advising,
    backfilling,
    copying,
    demonstrating,
    keeping,
    looking,
    migrating,
    verifying,
)
from copypipe.cli.output import say
from copypipe.errors import EXIT_CODES


def _exit_status() -> str:
    lines = [f"{code:>4}  {meaning}" for code, meaning, _ in EXIT_CODES]
    return "\b\nExit status (any other number means failure):\n" + "\n".join(lines)


app = typer.Typer(
    name="copypipe",
    help="Move table data from one PostgreSQL server to another with COPY.",
    epilog=_exit_status(),
    no_args_is_help=True,
    # Boxes are drawn into pipes too, and cannot be searched with grep.
    rich_markup_mode=None,
    # A traceback with local variables would show connection strings.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("copy", epilog=_exit_status())(copying.copy)
app.command("backfill", epilog=_exit_status())(backfilling.backfill)
app.command("status", epilog=_exit_status())(looking.status)
app.command("verify", cls=verifying.RepairsAlone, epilog=_exit_status())(verifying.verify)
app.command("migrate", epilog=_exit_status())(migrating.migrate)
app.command("receipt", epilog=_exit_status())(keeping.receipt)
app.command("init", epilog=_exit_status())(keeping.init)
app.command("clean", epilog=_exit_status())(keeping.clean)
app.command("grants", epilog=_exit_status())(advising.grants)
app.command("doctor", epilog=_exit_status())(advising.doctor)
app.command("demo")(demonstrating.demo)


def _version(wanted: bool) -> None:
    if not wanted:
        return
    import psycopg

    from copypipe import __version__
    from copypipe.relay import scans

    libpq = psycopg.pq.version()
    say(
        f"copypipe {__version__}, psycopg {psycopg.__version__} ({psycopg.pq.__impl__}), "
        f"libpq {libpq // 10000}.{libpq % 10000}, {scans.NAME} scan"
    )
    raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show versions and exit."),
    ] = False,
) -> None:
    pass

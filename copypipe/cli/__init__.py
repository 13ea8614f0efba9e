"""The command line: words become a request and one call; outcomes become text and exit codes."""

from __future__ import annotations

from copypipe.cli.signals import guard


def main() -> None:
    """Run copypipe and exit with one of the documented codes."""
    guard.install()
    from copypipe.cli.app import run  # signals are answered also while modules are imported

    run()

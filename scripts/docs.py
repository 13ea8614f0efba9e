"""Write what is generated: docs/cli.md from the options, the README's screen from the demo.

python scripts/docs.py         writes both
python scripts/docs.py cli     writes docs/cli.md alone
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer.main

from copypipe.cli.app import app
from copypipe.errors import EXIT_CODES

ROOT = Path(__file__).resolve().parents[1]
SCREEN = re.compile(r"(<!-- demo: scripts/docs.py -->\n```\n).*?(\n```\n)", re.DOTALL)


def main() -> None:
    """Write the files named by the arguments, all without any."""
    (ROOT / "docs" / "cli.md").write_text(reference())
    if sys.argv[1:] != ["cli"]:
        readme = ROOT / "README.md"
        readme.write_text(with_screen(readme.read_text(), screen(1_000_000)))


def reference() -> str:
    """Return the reference of all commands and options."""
    group: Any = typer.main.get_command(app)
    lines = ["# Command line", "", "Generated from the options by `scripts/docs.py`.", ""]
    lines += [str(group.help), ""]
    for name, command in group.commands.items():
        arguments = [p.name.upper() for p in command.params if p.param_type_name == "argument"]
        lines += [f"## copypipe {name}", "", f"`copypipe {' '.join([name, *arguments])} [OPTIONS]`"]
        lines += ["", str(command.help), "", "| option | default | meaning |", "|---|---|---|"]
        lines += [_row(parameter) for parameter in command.params]
        lines += [""]
    lines += ["## Exit codes", "", "| code | meaning | run again? |", "|---|---|---|"]
    lines += [f"| {code} | {meaning} | {again} |" for code, meaning, again in EXIT_CODES]
    lines += ["", "Any other number means failure.", ""]
    return "\n".join(lines)


def _row(parameter: Any) -> str:
    is_argument = parameter.param_type_name == "argument"
    names = [parameter.name.upper()] if is_argument else parameter.opts
    value = f" {parameter.metavar}" if parameter.metavar else ""
    default = getattr(parameter.default, "value", parameter.default)
    shown = "" if default in (None, False, ...) else f"`{default}`"
    cells = (", ".join(f"`{name}`" for name in names) + value, shown, parameter.help or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def screen(rows: int) -> str:
    """Run the demo and return what it prints, logs where a terminal shows them."""
    command = [sys.executable, "-m", "copypipe", "demo", "--rows", str(rows)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    return done.stdout.strip()


def with_screen(readme: str, screen: str) -> str:
    """Return the README with its screen replaced."""
    changed, number = SCREEN.subn(lambda found: found[1] + screen + found[2], readme)
    if number != 1:
        sys.exit("README.md has no place for the demo's screen")
    return changed


if __name__ == "__main__":
    main()

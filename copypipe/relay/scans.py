"""Which frame scan is in use: the one that mypyc compiled, where a wheel brought it."""

from __future__ import annotations

from copypipe.relay import loose, tight

COMPILED = not tight.__file__.endswith(".py")

scan = tight.scan if COMPILED else loose.scan

NAME = "compiled" if COMPILED else "interpreted"

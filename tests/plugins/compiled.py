"""`compiled_tight`: the scan of the relay as mypyc compiles it, kept from run to run."""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

from copypipe.relay import loose

TIGHT = Path(loose.__file__).with_name("tight.py")

OPTIONS = {"MYPYC_OPT_LEVEL": "3"}


@pytest.fixture(scope="session")
def compiled_tight(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Path | None:
    """Return the extension module, None where there is no C compiler."""
    kept = _kept(pytestconfig)
    if kept is not None and kept.is_file():
        return kept
    named = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if not any(map(shutil.which, (named, "cc", "gcc", "clang"))):
        if os.environ.get("CI") == "true":
            pytest.fail("CI=true wants the compiled scan, and there is no C compiler")
        return None
    made = _compiled(TIGHT, tmp_path_factory.mktemp("mypyc"))
    if kept is not None:
        with suppress(OSError):  # a file system that is full, or not ours to write to
            # Under a name of its own first: another run may look at the same moment.
            whole = kept.with_name(f"{kept.name}.{os.getpid()}")
            shutil.copyfile(made, whole)
            whole.replace(kept)
    return made


def _kept(config: pytest.Config) -> Path | None:
    """Return where the module is kept: below .pytest_cache, by all that makes it what it is."""
    if not hasattr(config, "cache"):
        return None
    try:
        folder = config.cache.mkdir("mypyc")
        owner = folder.stat().st_uid
    except OSError:
        return None
    if owner != os.geteuid():  # what somebody else wrote is not run
        return None
    facts = (sys.version, platform.platform(), metadata.version("mypy"), sorted(OPTIONS.items()))
    key = hashlib.sha256(TIGHT.read_bytes() + repr(facts).encode()).hexdigest()[:16]
    with suppress(OSError):
        (folder / key).mkdir(exist_ok=True)
    return folder / key / f"tight{sysconfig.get_config_var('EXT_SUFFIX')}"


def _compiled(source: Path, folder: Path) -> Path:
    """Compile the scan as `make wheel` does."""
    shutil.copy(source, folder)
    done = subprocess.run(
        [sys.executable, "-m", "mypyc", source.name],
        cwd=folder,
        env={**os.environ, **OPTIONS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (library,) = folder.glob("tight.*.so")
    return library


def loaded(file: Path) -> ModuleType:
    """Return the module of a file, source or compiled."""
    spec = importlib.util.spec_from_file_location("tight", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

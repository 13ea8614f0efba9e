"""A wheel carries the compiled scan where that was asked for, and needs no compiler elsewhere."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What a checkout has, without what was made in it.
TREE = ("copypipe", "tests", "scripts", "docs")
FILES = ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "Makefile", "constraints.txt")


def version_of(site: Path) -> str:
    """Return what the copypipe below a folder says of itself."""
    done = subprocess.run(
        [sys.executable, "-m", "copypipe", "--version"],
        cwd=site,
        env={"PATH": os.defpath, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of this checkout: what is built leaves files in it."""
    folder = tmp_path / "checkout"
    made = shutil.ignore_patterns("*.so", "__pycache__", "build")
    for name in TREE:
        shutil.copytree(ROOT / name, folder / name, ignore=made)
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    return folder


def test_the_scan_is_the_compiled_one_where_it_lies_beside_its_source(
    checkout: Path, compiled_tight: Path | None
) -> None:
    """As it does where a wheel was installed; the wheels themselves take longer."""
    assert version_of(checkout).endswith(", interpreted scan")
    if compiled_tight is None:
        pytest.skip("no C compiler")
    shutil.copy(compiled_tight, checkout / "copypipe" / "relay")
    assert version_of(checkout).endswith(", compiled scan")


def installed(wheel: Path, folder: Path) -> Path:
    """Install a wheel as pip does, which not every environment has, and return where it is."""
    venv.create(folder / "venv", with_pip=True)
    pip = [folder / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def names_of(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if name.startswith("copypipe/relay/tight")]


@pytest.mark.slow
def test_make_wheel_makes_one_with_the_compiled_scan(checkout: Path, tmp_path: Path) -> None:
    stamp = tmp_path / "installed"
    stamp.touch()  # what is needed to build is here: nothing is installed into the checkout
    done = subprocess.run(
        ["make", "wheel", f"BIN={Path(sys.executable).parent}", f"STAMP={stamp}"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"dist/{one.name}" for one in checkout.glob("dist/*.whl")]

    (wheel,) = checkout.glob("dist/*.whl")
    assert "none-any" not in wheel.name
    assert {Path(name).suffix for name in names_of(wheel)} == {".py", ".so"}
    assert version_of(installed(wheel, tmp_path)).endswith(", compiled scan")


@pytest.mark.slow
def test_a_wheel_needs_no_compiler_unless_it_is_asked_for(checkout: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist")],
        cwd=checkout,
        env={**os.environ, "CC": "/bin/false", "CXX": "/bin/false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    for word in ("mypyc", "compil", "gcc", "cc "):
        assert word not in done.stdout.lower()

    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert names_of(wheel) == ["copypipe/relay/tight.py"]
    assert version_of(installed(wheel, tmp_path)).endswith(", interpreted scan")

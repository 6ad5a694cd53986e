"""What is installed: everything that is needed, and stubs that are those of the protos."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from services import ROOT

SCRIPT = ROOT / "scripts" / "python-stubs.sh"
PACKAGE = ROOT / "clients" / "python"
KEPT = PACKAGE / "src"


def test_the_kept_stubs_are_those_of_the_protos(tmp_path: Path) -> None:
    subprocess.run([SCRIPT, sys.executable, tmp_path], check=True)
    made = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*_pb2*") if p.is_file()}
    kept = {p.relative_to(KEPT): p.read_bytes() for p in KEPT.rglob("*_pb2*") if p.suffix != ".pyc"}
    assert made and kept.keys() == made.keys()
    changed = [str(path) for path in made if made[path] != kept[path]]
    assert not changed, f"{changed}: run {SCRIPT.relative_to(ROOT)}"


def test_a_wheel_has_the_stubs_and_says_that_it_is_typed(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", tmp_path, PACKAGE], check=True)
    (wheel,) = tmp_path.glob("attune_client-*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    wanted = {str(p.relative_to(KEPT)) for p in KEPT.rglob("*") if p.suffix in (".py", ".pyi", ".typed")}
    assert wanted <= names and "attune/py.typed" in wanted
    assert not [name for name in names if "test" in name]

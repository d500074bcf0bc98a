"""What an installer and a type checker see: every room, its data, and a version."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

import vfmbench

ROOT = Path(__file__).parents[1]
ROOMS = ("methods", "baselines", "tasks", "slurm")


def test_every_outer_room_is_a_package_inside_vfmbench():
    for room in ROOMS:
        assert (ROOT / "vfmbench" / room).resolve() == ROOT / room
        assert (ROOT / "vfmbench" / room).is_symlink()


def test_the_type_checker_is_told_that_there_are_types():
    assert (ROOT / "vfmbench" / "py.typed").is_file()


def test_the_version_has_one_source():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert ROOT / project["tool"]["hatch"]["version"]["path"] == ROOT / "vfmbench/__init__.py"
    printed = subprocess.run([sys.executable, "-m", "vfmbench", "--version"], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == f"vfmbench {vfmbench.__version__}"


def test_a_wheel_has_every_file_of_every_room(tmp_path):
    found = list(WheelBuilder(str(ROOT)).build(directory=str(tmp_path)))
    names = set(zipfile.ZipFile(found[0]).namelist())
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    expected = {name for name in tracked if name.startswith("vfmbench/") and name.removeprefix("vfmbench/") not in ROOMS}
    expected |= {f"vfmbench/{name}" for name in tracked if name.split("/")[0] in ROOMS}
    assert expected <= names


def test_a_long_module_says_why_it_is_one():
    for file in (
        *ROOT.glob("benchmarks/*.py"),
        *(file for room in ("vfmbench", *ROOMS) for file in (ROOT / room).rglob("*.py")),
    ):
        text = file.read_text()
        if len(text.splitlines()) > 300:
            docstring = ast.get_docstring(ast.parse(text)) or ""
            assert "long" in docstring.lower(), f"{file.relative_to(ROOT)} has over 300 lines and gives no reason"

"""The floors of the house: a package imports what stands below it, and nothing runs in a circle."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import slimdpm

ROOT, SOURCE = Path(__file__).parents[1], Path(slimdpm.__file__).parent
FLOORS = (  # from the ground up; what stands on one line may be imported by the lines after it
    ("system",),
    ("wavelet",),
    ("unet",),
    ("method",),
    ("student_recipe", "train_recipe"),
    ("recipe",),
    ("recipe_file",),
    ("run_folder",),
    ("data",),
    ("conditioning",),
    ("pipelines",),
    ("cache", "metrics", "originals"),
    ("report",),
    ("training",),
    ("analysis", "export"),
    ("api", "app", "demo"),
    ("__init__",),
    ("cli",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules():
    """Each module of slimdpm and those of slimdpm that it imports, wherever in it."""
    files = {".".join(f.relative_to(SOURCE).with_suffix("").parts): f for f in SOURCE.rglob("*.py")}
    found = {}
    for name, file in files.items():
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        places = [(node.module.removeprefix("slimdpm").lstrip("."), node) for node in nodes if "slimdpm" in node.module]
        named = {f"{place}.{alias.name}".lstrip(".") for place, node in places for alias in node.names}
        found[name] = {n for n in named if n in files} | {
            p if p in files else f"{p}.__init__".lstrip(".")
            for p, node in places
            if not all(f"{p}.{alias.name}".lstrip(".") in files for alias in node.names)
        }
    return found


def test_no_import_runs_up_and_none_in_a_circle():
    found = modules()
    assert {name.split(".")[0] for name in found} == set(FLOOR)
    room = {name: name.split(".")[0] for name in found}
    up = [(name, target) for name in found for target in found[name] if FLOOR[room[target]] > FLOOR[room[name]]]
    across = [
        (name, target)
        for name in found
        for target in found[name]
        if FLOOR[room[target]] == FLOOR[room[name]] and room[target] != room[name]
    ]
    assert not up and not across
    list(TopologicalSorter(found).static_order())  # raises CycleError


def test_rooms_are_small_and_few():
    rooms = [path for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert len(rooms) <= 25
    lengths = {str(f.relative_to(SOURCE)): len(f.read_text().splitlines()) for f in SOURCE.rglob("*.py")}
    assert not {file: length for file, length in lengths.items() if length > 350}


@pytest.mark.slow
def test_values_have_the_types_that_are_told():
    """Here, so that a process checks them while the other runs tests."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_public_face_is_there():
    assert slimdpm.__all__ == sorted(slimdpm.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name))
    assert all(getattr(slimdpm, name).__doc__ for name in slimdpm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        slimdpm.nothing  # noqa: B018

"""What comes with the package: its names, its sizes, and photographs that are what a folder of them gives."""

import hashlib
import sys
import zlib

import numpy as np
import pytest
from pack_assets import pack_images
from PIL import Image

from slimdpm.cli.main import main
from slimdpm.data.dataset import Decoder
from slimdpm.data.folder import Folder
from slimdpm.data.open_source import open_source
from slimdpm.data.shards import Shards
from slimdpm.method.cost import measure_model
from slimdpm.method.presets import find_network
from slimdpm.metrics.evaluate import _is_data
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.packaged import ASSETS, data_sets, pipelines


def test_names_are_those_of_the_folders():
    students = [f"slimdpm:garments-{ratio}x" for ratio in (12, 18, 8)]
    teachers = [f"slimdpm:garments-teacher{which}" for which in ("", "-long", "-small")]
    assert list(pipelines()) == ["demo:teacher", "slimdpm:demo-teacher", *students, *teachers]
    assert list(data_sets()) == ["slimdpm:garments-test", "slimdpm:garments"]
    assert [_is_data(name) for name in ("slimdpm:garments", "slimdpm:garments-teacher")] == [True, False]


def test_the_teacher_of_garments_knows_the_classes_of_the_photographs():
    teacher = load_pipeline("slimdpm:garments-teacher")
    source = open_source("slimdpm:garments-test")
    assert tuple(teacher.config.id2label.values()) == source.labels().names
    assert find_network("slimdpm:garments-teacher").config["num_class_embeds"] == 11
    assert source.image(0).size == (32, 32) and len(source) == 372 and len(open_source("slimdpm:garments")) == 3068


@pytest.mark.parametrize("ratio", [8, 12, 18])
def test_the_students_of_garments_are_as_small_as_they_are_called(ratio):
    student, teacher = (load_pipeline(f"slimdpm:garments-{which}") for which in (f"{ratio}x", "teacher"))
    assert student.config.id2label == teacher.config.id2label
    theirs, ours = (measure_model(p.unet) for p in (teacher, student))
    assert ratio <= theirs.macs / ours.macs < 1.05 * ratio
    folder = ASSETS / f"garments-{ratio}x"
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) <= 2e6
    assert "CC0" in (folder / "README.md").read_text()


@pytest.mark.parametrize("words", [["slim", "slimdpm:hats", "slimdpm:garments-test"], ["sample", "slimdpm:hats"]])
def test_an_unknown_name_is_refused_with_the_known_ones(words, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["slimdpm", *words, "-o", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "slimdpm:garments-teacher-small; data sets are slimdpm:garments-test, slim" in said
    with pytest.raises(SlimdpmError, match="slimdpm:garments-teacher-long.*slimdpm:garments-test"):
        open_source("slimdpm:hats")
    with pytest.raises(SlimdpmError, match="no pipeline of slimdpm's own is called slimdpm:garments:"):
        load_pipeline("slimdpm:garments")


def test_what_ships_is_small():
    folders = [folder for folder in ASSETS.iterdir() if folder.is_dir()]
    size = {folder.name: sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) for folder in folders}
    assert size["garments"] <= 8 * 2**20 and size["garments-teacher"] <= 12e6
    files = [file for file in ASSETS.rglob("*") if file.is_file()]
    assert sum(len(zlib.compress(file.read_bytes())) for file in files) <= 27e6  # the wheel, which has little else: 30
    assert "CC0" in (ASSETS / "garments/README.md").read_text()


@pytest.fixture
def photographs(tmp_path):
    """Folders of classes with photographs of several shapes."""
    rng = np.random.default_rng(0)
    for number, (name, shape) in enumerate((("hat", (40, 50)), ("dress", (70, 33)), ("dress", (64, 64)))):
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).resize((90, 80))
        image.save(tmp_path / "photos" / name / f"{number}.jpg")
    return tmp_path / "photos"


def test_packed_photographs_are_what_the_folder_gives_to_the_last_bit(photographs, tmp_path):
    for name in ("one.tar", "two.tar"):
        pack_images(photographs, tmp_path / name)
    digests = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("one.tar", "two.tar")}
    assert len(digests) == 1
    folder, shards, decoder = Folder(photographs), Shards([tmp_path / "one.tar"]), Decoder(32)
    assert [shards.name(i) for i in range(3)] == [f"one.tar/{n}.webp" for n in ("dress/0001", "dress/0002", "hat/0001")]
    for index in range(3):
        np.testing.assert_array_equal(decoder(folder, index), decoder(shards, index))
    assert shards.labels().names == folder.labels().names == ("dress", "hat")
    np.testing.assert_array_equal(shards.labels().numbers, folder.labels().numbers)
    assert Shards([tmp_path / "one.tar"], labels="cls").labels() is None  # asked for, and not there

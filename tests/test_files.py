"""Files that are whole or absent, sealed or found out; and what the disk refuses in one line."""

import errno
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console
from safetensors import SafetensorError

from slimdpm.data.dataset import Decoder, prepare_images
from slimdpm.data.open_source import open_source
from slimdpm.metrics.collect import collect
from slimdpm.system import files
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.files import (
    atomic_file,
    atomic_folder,
    read_sealed,
    remove_leftovers,
    write_json,
    write_sealed,
    write_text,
)
from slimdpm.system.hashing import digest_files
from slimdpm.system.progress import Display


@pytest.fixture(scope="module")
def dead():
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_go_if_they_are_surely_nobodys(tmp_path, dead):
    names = {
        f".a.tmp-{files._HOST}-{dead}": "dead",
        f".b.tmp-{dead}": "dead, of an earlier version",
        f".a.tmp-{files._HOST}-{os.getpid()}": "alive",
        f".a.tmp-{files._HOST}-{os.getppid()}": "alive",
        f".a.tmp-000000-{dead}": "of another machine",
        ".a.tmp-mine": "somebody's",
    }
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_bytes(b"")
    remove_leftovers(tmp_path)
    assert {names[p.name] for p in tmp_path.iterdir()} == {"alive", "of another machine", "somebody's"}
    remove_leftovers(tmp_path, "b", locked=True)
    assert len(list(tmp_path.iterdir())) == 4
    remove_leftovers(tmp_path, locked=True)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_written_where_an_earlier_process_of_the_same_number_died(tmp_path):
    half = files._temporary(tmp_path / "x")
    half.mkdir()
    (half / "half").write_bytes(b"")
    with atomic_folder(tmp_path / "x") as temporary:
        (temporary / "whole").write_bytes(b"")
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["whole"] and not half.exists()


REFUSALS = [
    *(OSError(number, os.strerror(number)) for number in (
        errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOTCONN,
        errno.EACCES, errno.ENOENT, errno.ENAMETOOLONG, errno.EBUSY,
    )),
    OSError("12 requested and 3 written"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]  # fmt: skip


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
@pytest.mark.parametrize("place", ["body", "fsync", "rename"])
def test_whatever_the_disk_refuses_is_one_line_and_leaves_what_was_there(refusal, place, tmp_path, monkeypatch):
    write_text(tmp_path / "x", "before")

    def refuse(*args):
        raise refusal

    def attempt():
        with monkeypatch.context() as patch, atomic_file(tmp_path / "x") as temporary:
            temporary.write_text("half")
            if place == "body":
                refuse()
            patch.setattr(*((os, "fsync") if place == "fsync" else (type(temporary), "replace")), refuse)

    with pytest.raises(SlimdpmError, match=f"{tmp_path / 'x'}.*; nothing was half-written") as refused:
        attempt()
    assert "\n" not in str(refused.value)
    assert (tmp_path / "x").read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_names_that_are_no_text_are_spelled_out(tmp_path):
    write_text(tmp_path / "x", "of the folder \udcff")
    assert (tmp_path / "x").read_text() == "of the folder \\udcff"


def test_what_is_sealed_is_found_out(tmp_path):
    names = ["a.bin", "b.bin"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    sealed = tmp_path / "about.json"
    write_sealed(sealed, {"x": 0.1, "y": [1]}, [tmp_path / name for name in names])
    assert {k: v for k, v in read_sealed(sealed).items() if k != "files"} == {"x": 0.1, "y": [1]}
    assert read_sealed(sealed)["files"]["a.bin"] != read_sealed(sealed)["files"]["b.bin"]
    (tmp_path / "a.bin").write_bytes(b"A.bin")
    with pytest.raises(SlimdpmError, match=r"a\.bin is damaged"):
        read_sealed(sealed)
    (tmp_path / "a.bin").rename(tmp_path / "c.bin")
    with pytest.raises(SlimdpmError, match=r"a\.bin does not exist"):
        read_sealed(sealed)
    os.mkfifo(tmp_path / "a.bin")  # reading it would never end
    with pytest.raises(SlimdpmError, match=r"a\.bin is no regular file"):
        read_sealed(sealed)
    (tmp_path / "a.bin").unlink()
    (tmp_path / "a.bin").write_bytes(b"a.bin")
    read_sealed(sealed)
    sealed.rename(tmp_path / "other.json")  # of another shard
    with pytest.raises(SlimdpmError, match=r"other\.json is damaged"):
        read_sealed(tmp_path / "other.json")
    for value in ([1], {"x": 1}, {"x": 1, "digest": "0", "files": {}}):
        write_json(sealed, value)
        with pytest.raises(SlimdpmError, match=r"about\.json is damaged or of an earlier version"):
            read_sealed(sealed)
    assert digest_files([tmp_path / "b.bin"]) == digest_files([tmp_path / "b.bin"]) != digest_files([])


def flip(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 0x10
    file.write_bytes(data)


@pytest.mark.parametrize("place", [0, 9, 100, 200, 3000, -1], ids=str)
def test_damaged_squares_are_made_again_and_it_is_said(place, tmp_path, image_folder):
    source, said, display = open_source(str(image_folder)), [], Display()
    display.say = said.append
    whole = prepare_images(source, Decoder(16), cache=tmp_path, display=display).squares.copy()
    squares, about = next(tmp_path.glob("images-*.npy")), next(tmp_path.glob("images-*.json"))
    before = [squares.read_bytes(), about.read_bytes()]
    for file in (squares, about):
        flip(file, place % file.stat().st_size)
        again = prepare_images(source, Decoder(16), cache=tmp_path, display=display)
        assert len(said) == 1 and file.name in said.pop() and np.array_equal(whole, again.squares)
        assert [squares.read_bytes(), about.read_bytes()] == before
    prepare_images(source, Decoder(16), cache=tmp_path, display=display)
    assert not said


class Numbers:
    """Images that are counted when they are made, and features of them."""

    name, key, shape, stored = "numbers", "k", (2, 2, 3), False

    def __init__(self, count=130):
        self.count, self.made = count, []

    def __len__(self):
        return self.count

    def images(self, first, last):
        self.made.append(first)
        return np.arange(first, last, dtype=np.uint8).repeat(12).reshape(-1, 2, 2, 3)

    def __call__(self, images):
        return images.reshape(len(images), -1)[:, :2].astype(np.float32), None


def collected(folder, images):
    told = io.StringIO()
    result = collect(images, folder, images, Display(Console(file=told, width=1000)))
    np.testing.assert_array_equal(result.features()[:, 0], np.arange(len(images)))
    np.testing.assert_array_equal(np.concatenate(list(result.batches()))[:, 0, 0, 0], np.arange(len(images)))
    return images.made, [line for line in told.getvalue().splitlines() if "made again" in line]


def test_damaged_pictures_and_features_of_an_evaluation_are_made_again_and_it_is_said(tmp_path):
    assert collected(tmp_path, Numbers()) == ([0, 64, 128], [])
    assert collected(tmp_path, Numbers()) == ([], [])
    kept = {file: file.read_bytes() for file in tmp_path.rglob("0000*.*")}
    assert len(kept) == 6
    for file, content in kept.items():
        for place in np.random.default_rng(0).permutation(len(content))[:4]:
            flip(file, place)
            made, said = collected(tmp_path, Numbers())
            assert len(said) == 1 and f"{file.stem}." in said[0] and set(made) <= {int(file.stem)}, (file, place)
    assert {file: file.read_bytes() for file in tmp_path.rglob("0000*.*")} == kept


def test_swapped_shards_of_an_evaluation_are_made_again(tmp_path):
    collected(tmp_path, Numbers(256))
    for pattern in ("00000{}.safetensors", "*/00000{}.safetensors"):
        one, two = (next(next(tmp_path.iterdir()).glob(pattern.format(n))) for n in ("000", "064"))
        content = one.read_bytes()
        one.write_bytes(two.read_bytes()), two.write_bytes(content)
        made, said = collected(tmp_path, Numbers(256))
        assert len(said) == 2 and set(made) <= {0, 64}


def test_a_larger_evaluation_makes_its_last_shard_longer_without_complaint(tmp_path):
    collected(tmp_path, Numbers(100))
    assert collected(tmp_path, Numbers(130)) == ([64, 128], [])
    assert collected(tmp_path, Numbers(100)) == ([], [])

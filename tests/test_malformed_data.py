"""Data files that are damaged, or made to do harm: one line each, in little memory; and content that decides."""

import io
import os
import tarfile
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from slimdpm.api import _data_name
from slimdpm.data.arrays import Arrays
from slimdpm.data.dataset import Decoder, prepare_images
from slimdpm.data.labels import captions_of, labels_of
from slimdpm.data.open_source import open_source
from slimdpm.data.sources import content_of
from slimdpm.data.stream import StreamBatches, TrainingStream, training_loader
from slimdpm.metrics.collect import Given
from slimdpm.system.errors import SlimdpmError


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    return buffer.getvalue()


# -- tar ------------------------------------------------------------------------------------------------------------


def shard(file, *members, form=tarfile.PAX_FORMAT):
    """A tar file of (name, data, changes of its header)."""
    with tarfile.open(file, "w", format=form) as tar:
        for name, data, changes in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in changes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data) if info.size == len(data) else None)
            if info.size != len(data):
                tar.fileobj.write(data.ljust(-len(data) % 512 + len(data), b"\0"))
    return file


def with_size(file, number, field):
    """The size in the header of a member overwritten, and its checksum made right."""
    with tarfile.open(file) as tar:
        start = tar.getmembers()[number].offset
    data = bytearray(file.read_bytes())
    data[start + 124 : start + 136] = field
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (b"\xff" * 10 + b"\xfe\x00", "the header of b.png is no plain file's"),  # -512: back to its own header
        (b"\xff" * 12, "the header of b.png is no plain file's"),
        (b"\x80" + b"\x7f" * 11, "is cut short"),
        (b"77777777777\0", "is cut short"),
        (b"not a number", "is cut short"),
    ],
)
def test_sizes_in_a_tar_header_that_make_no_sense(tmp_path, field, words):
    file = shard(tmp_path / "s.tar", ("a.png", png(), {}), ("b.png", png(), {}), form=tarfile.USTAR_FORMAT)
    with_size(file, 1, field)
    with pytest.raises(SlimdpmError, match=words):
        open_source(str(file))


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"size": "9" * 20}, "a.png ends behind the end of the file"),
        ({"size": "-512"}, "s.tar cannot be read as a tar file"),
        ({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, "s.tar cannot be read as a tar file"),
        ({"GNU.sparse.map": "0,x", "GNU.sparse.size": "4"}, "s.tar cannot be read as a tar file"),
    ],
)
def test_pax_headers_that_make_no_sense(tmp_path, headers, words):
    file = shard(tmp_path / "s.tar", ("a.png", png(), {"pax_headers": headers}))
    with pytest.raises(SlimdpmError, match=words):
        open_source(str(file))


@pytest.mark.parametrize("seed", range(20))
def test_tars_with_random_bytes_in_their_headers(tmp_path, seed):
    file = shard(tmp_path / "s.tar", ("a.png", png(), {}), ("a.cls", b"3", {}), ("b" * 200 + ".png", png(), {}))
    rng, data = np.random.default_rng(seed), bytearray(file.read_bytes())
    for place in rng.integers(0, len(data) // 512, 3) * 512 + rng.integers(100, 260, 3):
        data[place] = rng.integers(256)
    file.write_bytes(data)
    with suppress(SlimdpmError):
        assert len(open_source(str(file))) <= 2


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.cls", b"9" * 5000, "the label of s.tar/a.png is 99999999999999999999: classes are numbered from"),
        ("a.cls", b"100000000", "the label of s.tar/a.png is 100000000: classes are numbered from 0 to 99,999"),
        ("a.txt", b"boot " * 20_000, "the caption of s.tar/a.png has 65,537 characters, 65,536 at most"),
    ],
)
def test_labels_and_captions_of_shards_are_bounded(tmp_path, name, data, words):
    source = open_source(str(shard(tmp_path / "s.tar", ("a.png", png(), {}), (name, data, {}))))
    with pytest.raises(SlimdpmError, match=words):
        (labels_of if name == "a.cls" else captions_of)(source)


# -- .npy and .npz --------------------------------------------------------------------------------------------------


def header(shape, kind="|u1"):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


GOOD = header((2, 4, 4, 3)) + bytes(96)


@pytest.mark.parametrize("ending", ["npy", "npz"])
@pytest.mark.parametrize(
    "content",
    [
        header((-5, 4, 4, 3)) + bytes(300),
        header((-1, -1, 4, 3)) + bytes(300),
        header((10**12, 64, 64, 3)) + bytes(300),
        header((10**30, 64, 64, 3)) + bytes(300),
        header((5, 4, 4, 3)) + bytes(100),
        header((0, 4, 4, 3)),
        header((5, 0, 4, 3)),
        header((2, 4, 4, 3), "|O") + b"cos\nsystem\n(S'touch proof'\ntR.",
        b"\x93NUMPY\x01\x00\xff\xff{",
        b"\x93NUMPY\x09\x00",
        b"no array at all",
        b"",
    ],
)
def test_arrays_that_cannot_be(tmp_path, ending, content):
    file = tmp_path / f"a.{ending}"
    if ending == "npy":
        file.write_bytes(content)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("images.npy", content)
    with pytest.raises(SlimdpmError, match=f"a.{ending}"):
        open_source(str(file))


def test_an_archive_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("slimdpm.data.arrays._LARGE", 2**20)  # a bomb of megabytes is made faster
    for name, told in (("labels.npy", "labels"), ("arr_0.npy", "arr_0")):
        with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images.npy", GOOD if name == "labels.npy" else header((3,)) + b"abc")
            archive.writestr(name, header((4_000_000,)) + bytes(4_000_000))
        with pytest.raises(SlimdpmError, match=f"{told} claims to be 4,000,000 bytes, unpacked from [34],"):
            open_source(str(tmp_path / "bomb.npz"))


@pytest.mark.parametrize("place", range(40, 400, 15))
def test_archives_with_a_flipped_byte(tmp_path, place):
    images = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([0, 1]))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[place] ^= 0x11
    (tmp_path / "a.npz").write_bytes(data)
    with suppress(SlimdpmError):
        np.testing.assert_array_equal(open_source(str(tmp_path / "a.npz")).images, images)


# -- the system ------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(8):
        Image.new("RGB", (20, 16), (i, i, i)).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_goes_while_training_is_named(photos, workers):
    images = prepare_images(open_source(str(photos)), Decoder(16))
    (photos / "3.png").unlink()
    with pytest.raises(SlimdpmError) as error:
        list(training_loader(TrainingStream(images), StreamBatches(4, 0, 4), workers=workers))
    assert str(error.value) == "the image 3.png cannot be read any more: No such file or directory"


@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_system_lacks_makes_no_image_a_broken_one(photos, workers, monkeypatch):
    source = open_source(str(photos))

    def few_handles(index):
        raise OSError(24, "Too many open files", str(source.files[index]))

    monkeypatch.setattr(source, "image", few_handles)
    with pytest.raises(SlimdpmError, match=r"^the image 0.png cannot be read: Too many open files$"):
        prepare_images(source, Decoder(16), workers=workers)


def test_images_that_are_gone_have_no_content(photos):
    source = open_source(str(photos))
    (photos / "3.png").unlink()
    with pytest.raises(SlimdpmError, match="the images cannot be read: No such file or directory"):
        content_of(source, None)


# -- content decides -------------------------------------------------------------------------------------------------


def test_one_other_pixel_is_other_data(tmp_path):
    one = np.random.default_rng(0).integers(0, 256, (640, 20, 20, 3), dtype=np.uint8)
    two = one.copy()
    two[5, 3, 3, 0] ^= 1  # not among the every tenth
    for name, images in (("one", one), ("two", two)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "x.npz", images=images)
        np.save(tmp_path / name / "x.npy", images)
    sets = [prepare_images(Arrays(images), Decoder(16), cache=tmp_path) for images in (one, two)]
    for images, data in zip(sets, (one, two), strict=True):
        np.testing.assert_array_equal(images.square(5), prepare_images(Arrays(data), Decoder(16)).square(5))
    assert Given("a", sets[0]).key != Given("a", sets[1]).key
    assert _data_name(one) != _data_name(two) and _data_name(one) == _data_name(one.copy())
    names = [
        content_of(open_source(str(tmp_path / n / f)), tmp_path) for n in ("one", "two") for f in ("x.npz", "x.npy")
    ]
    assert names[0] == names[1] == Arrays(one).content() and names[2] == names[3] == Arrays(two).content()
    assert names[0] != names[2]


def test_a_moved_file_is_the_same_data_and_a_new_one_under_its_name_is_not(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", images)
    first = content_of(open_source(str(tmp_path / "a.npy")), tmp_path)
    os.rename(tmp_path / "a.npy", tmp_path / "b.npy")
    assert content_of(open_source(str(tmp_path / "b.npy")), tmp_path) == first
    np.save(tmp_path / "a.npy", images + 1)
    assert content_of(open_source(str(tmp_path / "a.npy")), tmp_path) != first


def test_what_is_remembered_of_data_is_made_again_if_it_is_no_such_text(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 20, 20, 3), np.uint8))
    source = open_source(str(tmp_path / "a.npy"))
    first = content_of(source, tmp_path)
    (remembered,) = tmp_path.glob("content-*.txt")
    for put in (
        lambda: remembered.symlink_to("/dev/zero"),
        lambda: remembered.write_bytes(b"../x\xff"),
        remembered.touch,
    ):
        remembered.unlink()
        put()
        assert content_of(source, tmp_path) == first and remembered.read_text() == first

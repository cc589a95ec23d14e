"""Classes and captions from metadata files and tar shards; and what is wrong with them, in one line."""

import csv
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from slimdpm.data.dataset import Decoder, prepare_images
from slimdpm.data.labels import captions_of, labels_of
from slimdpm.data.open_source import open_source
from slimdpm.data.stream import StreamBatches, TrainingStream, training_loader
from slimdpm.recipe import DataRecipe
from slimdpm.system.errors import SlimdpmError

CAPTIONS = ["ein Stiefel", "пальто\u2028in two lines", "ドレス"]


def picture(number):
    return Image.fromarray(np.full((16, 16, 3), number, np.uint8))


@pytest.fixture
def pictures(tmp_path):
    """Three images, the third in a folder of its own."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.png", "more/c.png"]):
        picture(i).save(folder / name)
    return folder


def as_jsonl(folder, rows):
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def as_csv(folder, rows):
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


ROWS = [
    {"file_name": name, "label": label, "text": text}
    for name, label, text in zip(["more/c.png", "a.png", "b.png"], [0, 2, 1], CAPTIONS, strict=True)
]


@pytest.mark.parametrize("write", [as_jsonl, as_csv])
def test_metadata_beside_the_images(pictures, write):
    write(pictures, ROWS)
    source = open_source(str(pictures))
    labels = labels_of(source)
    assert [source.name(i) for i in range(3)] == ["a.png", "b.png", "more/c.png"]
    assert labels.numbers.tolist() == [2, 1, 0] and labels.names is None
    assert captions_of(source) == [CAPTIONS[1], CAPTIONS[2], CAPTIONS[0]]


def test_it_is_read_as_datasets_reads_it(pictures, tmp_path):
    datasets = pytest.importorskip("datasets")
    as_jsonl(pictures, ROWS)
    theirs = datasets.load_dataset("imagefolder", data_dir=str(pictures), split="train", cache_dir=str(tmp_path / "hf"))
    told = {np.asarray(row["image"])[0, 0, 0]: (row["label"], row["text"]) for row in theirs}
    source = open_source(str(pictures))
    ours = zip(labels_of(source).numbers.tolist(), captions_of(source), strict=True)
    assert dict(enumerate(ours)) == told


def test_metadata_of_a_folder_within_and_names_of_its_own(pictures):
    as_jsonl(
        pictures, [{"file_name": f"{n}.png", "kind": kind, "label": 0} for n, kind in zip("ab", "xy", strict=True)]
    )
    as_csv(pictures / "more", [{"file_name": "c.png", "kind": "x", "label": 0}])
    labels = labels_of(open_source(DataRecipe(path=str(pictures), label_column="kind")))
    assert labels.numbers.tolist() == [0, 1, 0] and labels.names == ("x", "y")
    with pytest.raises(SlimdpmError, match="has no 'colour', only file_name, kind, label"):
        labels_of(open_source(DataRecipe(path=str(pictures), label_column="colour")))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"file_name": "a.png", "text": "x"}\n{"text": "\xcf\xf0"}', "line 2 is not valid UTF-8; save it as UTF-8"),
        (b'{"file_name": "a.png", "text": "x"}\n\n{"file_name": ', "metadata.jsonl: line 3 is no JSON object"),
        (b'{"text": "x"}', "metadata.jsonl: line 1 has no file_name"),
        (b'{"file_name": "a.png", "text": "x"}', "b.png has no caption"),
        (b'{"file_name": "a.png", "text": 3}', "a.png has no caption"),
    ],
)
def test_captions_that_cannot_be_read(pictures, content, words):
    (pictures / "metadata.jsonl").write_bytes(content)
    with pytest.raises(SlimdpmError, match=words) as error:
        captions_of(open_source(str(pictures)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [([0, None, 1], "b.png has no label"), ([0, "dress", 1], "a.png has a number for its label, b.png a name")],
)
def test_labels_that_are_missing_or_mixed(pictures, values, words):
    names = ["a.png", "b.png", "more/c.png"]
    as_jsonl(pictures, [{"file_name": n, "label": v} for n, v in zip(names, values, strict=True)])
    with pytest.raises(SlimdpmError, match=words):
        labels_of(open_source(str(pictures)))


# -- shards ---------------------------------------------------------------------------------------------------------


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def as_png(number):
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path, numbers, form=tarfile.USTAR_FORMAT):
    with tarfile.open(path, "w", format=form) as tar:
        for number in numbers:
            add(tar, f"set/{number:03d}.cls", str(number % 3).encode())
            add(tar, f"set/{number:03d}.png", as_png(number))
            add(tar, f"set/{number:03d}.txt", f"{CAPTIONS[number % 3]} {number}\n".encode())


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_shards_are_read_at_any_place(tmp_path, form):
    write_shard(tmp_path / "s-0.tar", range(4), form)
    write_shard(tmp_path / "s-1.tar", range(4, 7), form)
    (tmp_path / "._s-0.tar").write_bytes(b"what another system leaves")
    source = open_source(str(tmp_path))
    assert len(source) == 7 and source.name(5) == "s-1.tar/set/005.png"
    assert [np.asarray(source.image(i))[3, 3, 1] for i in (6, 0, 3, 5)] == [6, 0, 3, 5]
    assert labels_of(source).numbers.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert captions_of(source) == [f"{CAPTIONS[i % 3]} {i}" for i in range(7)]
    assert len(open_source(str(tmp_path / "s-1.tar"))) == 3


def test_the_stream_of_shards_carries_captions(tmp_path):
    write_shard(tmp_path / "s.tar", range(6))
    source = open_source(str(tmp_path / "s.tar"))
    images = prepare_images(source, Decoder(16, crop="random"))
    object.__setattr__(images, "conditions", captions_of(source))
    batches = list(training_loader(TrainingStream(images), StreamBatches(3, 0, 2), workers=2))
    seen = [n for batch in batches for n in ((batch["images"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()]
    assert sorted(seen) == list(range(6))
    assert [text for batch in batches for text in batch["conditions"]] == [f"{CAPTIONS[n % 3]} {n}" for n in seen]


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, "header", "end"])
def test_a_shard_that_is_cut_short(tmp_path, keep):
    file = tmp_path / "s.tar"
    write_shard(file, range(4))
    whole = file.read_bytes()
    with tarfile.open(file) as tar:
        last = tar.getmembers()[-1]
    ends = {"header": last.offset + 100, "end": last.offset_data + 512}
    file.write_bytes(whole[: ends[keep] if isinstance(keep, str) else int(keep * ends["end"])])
    with pytest.raises(SlimdpmError, match=r"the shard .*s.tar is cut short"):
        open_source(str(file))


def test_files_that_are_no_shards(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"I am no tar file" * 100)
    with pytest.raises(SlimdpmError, match="a.tar cannot be read as a tar file"):
        open_source(str(tmp_path / "a.tar"))
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        add(tar, "a.txt", b"alone")
    with pytest.raises(SlimdpmError, match="b.tar holds no images"):
        open_source(str(tmp_path / "b.tar"))


def test_shards_with_something_missing_or_unreadable(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for number, text in enumerate([b"x", b"\xcf\xf0\xe8"]):
            add(tar, f"{number}.png", as_png(number))
            add(tar, f"{number}.txt", text)
        add(tar, "0.cls", b"dress")
    source = open_source(str(tmp_path / "s.tar"))
    with pytest.raises(SlimdpmError, match=r".txt of s.tar/1.png: line 1 is not valid UTF-8"):
        captions_of(source)
    with pytest.raises(SlimdpmError, match=r"s.tar/1.png has no label"):
        labels_of(source)
    assert len(prepare_images(source, Decoder(16))) == 2  # as images they are fine


def test_a_folder_of_images_with_a_tar_file_is_a_folder_of_images(pictures):
    write_shard(pictures / "s.tar", range(6))
    assert len(open_source(str(pictures))) == 3

"""Folders as people have them: numbers for names, links, leftovers of other programs, captions beside images."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from slimdpm.conditioning.classes import ClassLabels
from slimdpm.data.labels import captions_of, labels_of
from slimdpm.data.open_source import open_source
from slimdpm.recipe import DataRecipe
from slimdpm.system.errors import SlimdpmError


def draw(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(root / name, "PNG")
    return root


def seen(root, **columns):
    source = open_source(DataRecipe(path=str(root), **columns))
    return source, [source.name(i) for i in range(len(source))]


def classes(root):
    source, names = seen(root)
    labels = labels_of(source)
    return None if labels is None else dict(zip(names, labels.numbers.tolist(), strict=True))


# -- classes --------------------------------------------------------------------------------------------------------


def test_folders_that_are_numbers_are_these_numbers(tmp_path):
    draw(tmp_path, "0/a.png", "1/a.png", "2/a.png", "10/a.png")
    assert classes(tmp_path) == {"0/a.png": 0, "1/a.png": 1, "2/a.png": 2, "10/a.png": 10}
    draw(tmp_path, "eleven/a.png")  # not all of them are: they are names, in the order of names
    assert classes(tmp_path) == {"0/a.png": 0, "1/a.png": 1, "10/a.png": 2, "2/a.png": 3, "eleven/a.png": 4}


@pytest.mark.parametrize(
    ("name", "words"),
    [("100000000", "is 100000000: classes are numbered from 0 to 99,999"), ("01", "'01' and '1' are one number")],
)
def test_numbers_that_no_class_has(tmp_path, name, words):
    draw(tmp_path, "1/a.png", f"{name}/a.png")
    with pytest.raises(SlimdpmError, match=words):
        classes(tmp_path)


def test_a_run_says_which_folder_became_which_number(tmp_path):
    draw(tmp_path, "coat/a.png", "boots/a.png", "dress/a.png")
    conditioning, numbers = ClassLabels(5, 0).read(seen(tmp_path)[0])
    assert numbers == [1, 2, 3]
    assert conditioning.describe(0.1).splitlines()[1] == "classes of the data: boots is 1, coat is 2, dress is 3"
    for number in range(30):
        draw(tmp_path / "many", f"{number}/a.png")
    line = ClassLabels(31, 30).read(seen(tmp_path / "many")[0])[0].describe(0.1).splitlines()[1]
    assert line.startswith("classes of the data: 0 is 0, 1 is 1, 2 is 2,") and line.endswith(
        "... (30 in all), 29 is 29"
    )


def test_numbers_that_are_names_of_a_network_are_matched_by_name(tmp_path):
    draw(tmp_path, "0/a.png", "2/a.png", "10/a.png")
    old = ClassLabels(5, 4, ("0", "1", "10", "2"))  # numbered in the order of names
    source, names = seen(tmp_path)
    assert dict(zip(names, old.read(source)[1], strict=True)) == {"0/a.png": 0, "10/a.png": 2, "2/a.png": 3}


def test_dataset_json_of_stylegan_and_edm(tmp_path):
    names = ["00000/img00000000.png", "00000/img00000001.png", "00001/img00001000.png"]
    draw(tmp_path, *names)
    assert classes(tmp_path) == dict(zip(names, [0, 0, 1], strict=True))  # nothing says what the folders are
    (tmp_path / "dataset.json").write_text(
        json.dumps({"labels": [[n, v] for n, v in zip(names, [6, 9, 6], strict=True)]})
    )
    assert classes(tmp_path) == dict(zip(names, [6, 9, 6], strict=True))
    (tmp_path / "dataset.json").write_text('{"labels": null}')
    assert classes(tmp_path) is None
    (tmp_path / "dataset.json").write_text('{"images": []}')  # another program's
    assert classes(tmp_path) == dict(zip(names, [0, 0, 1], strict=True))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"labels": [["a.png"]]}', r"labels must be null or a list of \[path, number\], not of \['a.png'\]"),
        ('{"labels": 3}', "labels must be null or a list"),
        ('{"labels": [["b.png", 1]]}', "1 of the 1 lines of .*dataset.json name no image, the first one b.png"),
        ('{"labels": [["a.png", [0, 1]]]}', r"the label of a.png is neither a whole number nor a name: \[0, 1\]"),
        ('{"labels": [', "dataset.json cannot be read as JSON"),
    ],
)
def test_a_dataset_json_that_cannot_be_used(tmp_path, text, words):
    draw(tmp_path, "a.png")
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(SlimdpmError, match=words):
        classes(tmp_path)


# -- what is an image -----------------------------------------------------------------------------------------------


def test_hidden_files_and_folders_are_neither_images_nor_classes(tmp_path):
    draw(tmp_path, "a/1.png", "a/._1.png", "b/1.png", "b/.ipynb_checkpoints/1.png", ".git/1.png", "__MACOSX/a/1.png")
    assert classes(tmp_path) == {"a/1.png": 0, "b/1.png": 1}


def test_links_to_class_folders_are_followed_and_never_in_a_circle(tmp_path):
    draw(tmp_path / "elsewhere", "cats/1.png", "dogs/1.png")
    data = draw(tmp_path / "data", "birds/1.png", "birds/small/2.png")
    for name in ("cats", "dogs"):
        (data / name).symlink_to(tmp_path / "elsewhere" / name)
    (data / "birds" / "all").symlink_to(data)
    (tmp_path / "elsewhere" / "cats" / "up").symlink_to(tmp_path)
    (data / "again").symlink_to(data / "birds")
    (data / "itself").symlink_to(data / "itself")
    (data / "gone.png").symlink_to(data / "nothing")
    assert classes(data) == {"birds/1.png": 0, "birds/small/2.png": 0, "cats/1.png": 1, "dogs/1.png": 2}


def test_pipes_and_folders_under_the_names_of_images_are_left_alone(tmp_path):
    draw(tmp_path, "a.png", "folder.png/b.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe.tar")
    assert seen(tmp_path)[1] == ["a.png", "folder.png/b.png"]
    with pytest.raises(SlimdpmError, match=r"pipe.tar is neither file nor folder"):
        seen(tmp_path / "pipe.tar")


def test_the_grid_of_samples_is_no_sample(tmp_path):
    draw(tmp_path, "00000.png", "00001.png", "grid.png")
    assert len(seen(tmp_path)[1]) == 3
    (tmp_path / "samples.json").write_text("{}")
    assert seen(tmp_path)[1] == ["00000.png", "00001.png"]


def test_names_that_are_no_utf8_or_too_long(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    source, names = seen(tmp_path)
    assert names == ["caf\udce9.png"] and source.image(0).size == (16, 16) and len(source.content()) == 32
    with pytest.raises(SlimdpmError, match="File name too long"):
        seen(tmp_path / ("x" * 300))


# -- captions -------------------------------------------------------------------------------------------------------


def test_captions_in_text_files_beside_the_images(tmp_path):
    draw(tmp_path, "a.png", "more/b.png")
    (tmp_path / "a.txt").write_text("a boot\n")
    (tmp_path / "more/b.txt").write_text("a coat,\nblue\n", encoding="utf-8-sig")
    (tmp_path / "more/b.caption").write_text("ein Mantel")
    assert captions_of(seen(tmp_path)[0]) == ["a boot", "a coat,\nblue"]
    with pytest.raises(SlimdpmError, match="a.png has no caption"):
        captions_of(seen(tmp_path, text_column="caption")[0])
    (tmp_path / "a.caption").write_text("ein Stiefel")
    assert captions_of(seen(tmp_path, text_column="caption")[0]) == ["ein Stiefel", "ein Mantel"]
    (tmp_path / "a.txt").write_text("boot " * 20_000)
    with pytest.raises(SlimdpmError, match=r"a.txt is too large: 100,000 bytes"):
        captions_of(seen(tmp_path)[0])


@pytest.mark.parametrize("column", ["text", "caption", "prompt", "additional_feature"])
def test_the_usual_names_of_captions_and_the_first_of_several(tmp_path, column):
    draw(tmp_path, "a.png", "more/b.png")
    rows = [{"file_name": ".\\more\\b.png", column: ["one", "two"]}, {"file_name": "a.png", column: "three"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert captions_of(seen(tmp_path)[0]) == ["three", "one"]


def test_metadata_in_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    draw(tmp_path, "a.png", "b.png")
    table = pyarrow.table({"file_name": ["b.png", "a.png"], "prompt": [["one", "two"], ["three"]], "label": [1, 0]})
    parquet.write_table(table, tmp_path / "metadata.parquet")
    source, _ = seen(tmp_path)
    assert captions_of(source) == ["three", "one"] and labels_of(source).numbers.tolist() == [0, 1]
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(SlimdpmError, match=r"metadata.parquet cannot be read: "):
        captions_of(seen(tmp_path)[0])


def test_metadata_in_parquet_without_pyarrow(tmp_path, monkeypatch):
    draw(tmp_path, "a.png")
    (tmp_path / "metadata.parquet").touch()
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(SlimdpmError, match=r"needs the package pyarrow to be read: pip install slimdpm\[datasets\]"):
        captions_of(seen(tmp_path)[0])


def test_metadata_of_other_images_is_named(tmp_path):
    draw(tmp_path, "a.png", "b.png")
    rows = [{"file_name": f"{name}.png", "text": "x"} for name in "abcd"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source, _ = seen(tmp_path)
    assert captions_of(source) == ["x", "x"]
    assert source.remarks == [
        f"warning: 2 of the 4 lines of {tmp_path}/metadata.jsonl name no image, the first one c.png"
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows[2:])))
    with pytest.raises(SlimdpmError, match=r"2 of the 2 lines of .*metadata.jsonl name no image, the first one c.png;"):
        captions_of(seen(tmp_path)[0])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"text": []}, "a.png has no caption$"),
        ({"text": [3]}, "a.png has no caption, but a value of the type int"),
        ({"text": {"a": 1}}, "a.png has no caption, but a value of the type dict"),
        ({"text": "x" * 70_000}, "the caption of a.png has 70,000 characters, 65,536 at most"),
    ],
)
def test_what_is_no_caption(tmp_path, line, words):
    draw(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", **line}))
    with pytest.raises(SlimdpmError, match=words):
        captions_of(seen(tmp_path)[0])


def test_a_csv_line_with_too_many_values(tmp_path):
    draw(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a boot, blue\n")
    with pytest.raises(SlimdpmError, match=r"metadata.csv: line 2 has more values than the first line has names"):
        captions_of(seen(tmp_path)[0])


def test_captions_of_arrays_may_be_lists():
    from slimdpm.data.arrays import Arrays

    images = np.zeros((2, 4, 4, 3), np.uint8)
    assert captions_of(Arrays(images, texts=[["a", "b"], ["c", "d"]])) == ["a", "c"]
    assert captions_of(Arrays(images, texts=["a", "b"])) == ["a", "b"]

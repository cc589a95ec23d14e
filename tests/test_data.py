"""Images of every kind, broken ones, caches, and the stream that training sees."""

import numpy as np
import pytest
import torch
from PIL import Image

from slimdpm.data import stream
from slimdpm.data.arrays import Arrays
from slimdpm.data.dataset import Decoder, prepare_images
from slimdpm.data.images import grid, pixels, square, to_model_range, to_pixels, upright
from slimdpm.data.open_source import open_source
from slimdpm.data.stream import StreamBatches, TrainingStream, training_loader
from slimdpm.system.errors import SlimdpmError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def halves(width=40, height=20):
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def colours(image):
    """The colour near each corner, as rounded to 0 or 255: top left, top right, bottom left, bottom right."""
    array = pixels(image)
    h, w = array.shape[:2]
    return [tuple((array[y, x] > 127) * 255) for y in (1, h - 2) for x in (1, w - 2)]


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the picture's top is on the right of what is stored
    halves().save(tmp_path / "turned.jpg", exif=exif, quality=95)
    image = upright(Image.open(tmp_path / "turned.jpg"))
    assert image.size == (20, 40)
    assert colours(image) == [RED, RED, BLUE, BLUE]


def test_modes_become_rgb(tmp_path):
    rgb = halves()
    expected = [RED, BLUE, RED, BLUE]
    assert colours(upright(rgb.quantize(4))) == expected  # palette
    assert colours(upright(rgb.convert("CMYK"))) == expected
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert colours(upright(Image.open(tmp_path / "cmyk.jpg"))) == expected
    grey = upright(Image.new("L", (8, 8), 100))
    assert grey.mode == "RGB" and pixels(grey)[0, 0].tolist() == [100, 100, 100]
    assert pixels(upright(rgb, channels=1)).shape == (20, 40, 1)


def test_transparency_lies_on_white(tmp_path):
    clear = halves().convert("RGBA")
    clear.putalpha(Image.new("L", clear.size, 0))
    assert pixels(upright(clear)).min() == 255
    palette = halves().quantize(4)
    palette.save(tmp_path / "p.png", transparency=int(np.asarray(palette)[0, 0]))
    assert colours(upright(Image.open(tmp_path / "p.png"))) == [(255, 255, 255), BLUE, (255, 255, 255), BLUE]


def test_sixteen_bit_greyscale_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    values = pixels(upright(Image.open(tmp_path / "deep.png")))[..., 0]
    np.testing.assert_allclose(values, ramp / 257, atol=1)


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (33, 17), (16, 16), (5, 9)])
def test_square_has_the_size_and_the_middle(size):
    assert square(Image.new("RGB", size), 16).size == (16, 16)
    assert colours(square(halves(), 20)) == [RED, BLUE, RED, BLUE]  # the middle of 40 by 20
    crops = {tuple(colours(square(halves(), 10, crop="random", rng=np.random.default_rng(i)))) for i in range(20)}
    assert len(crops) > 1


def test_resize_equals_pillow_with_antialiasing():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    expected = noise.resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels(square(noise, 16)), np.asarray(expected))


def test_a_folder_is_searched_deep_and_broken_files_are_named(image_folder, tmp_path):
    folder = tmp_path / "photos"
    (folder / "a" / "b").mkdir(parents=True)
    for i, size in enumerate([(30, 20), (20, 30), (16, 16)]):
        halves(*size).save(folder / "a" / "b" / f"{i}.JPG", format="JPEG")
    (folder / "a" / "text.png").write_text("not an image")
    (folder / "empty.jpg").touch()
    whole = (folder / "a" / "b" / "0.JPG").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("ignored")
    images = prepare_images(open_source(str(folder)), Decoder(16), cache=tmp_path / "cache", workers=2)
    assert len(images) == 3 and len(images.broken) == 3
    assert [name for name, _ in images.broken] == ["a/text.png", "cut.jpg", "empty.jpg"]
    line = images.report_broken()
    assert line.startswith("3 of 6 images cannot be read and are skipped: a/text.png (UnidentifiedImageError")
    assert images.square(0).shape == (16, 16, 3)


def test_the_cache_gives_the_same_squares_and_is_used_again(image_folder, tmp_path, monkeypatch):
    source = open_source(str(image_folder))
    plain = prepare_images(source, Decoder(16))
    cached = prepare_images(source, Decoder(16), cache=tmp_path)
    for i in range(len(source)):
        np.testing.assert_array_equal(plain.square(i), cached.square(i))
    monkeypatch.setattr(type(source), "image", lambda *a: pytest.fail("decoded again"))
    again = prepare_images(open_source(str(image_folder)), Decoder(16), cache=tmp_path)
    np.testing.assert_array_equal(again.square(3), plain.squares[3] if plain.squares is not None else cached.square(3))
    monkeypatch.undo()
    other = prepare_images(source, Decoder(8), cache=tmp_path)  # another size is another cache
    assert other.square(0).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.mkdir(), "holds no images"),
        (lambda p: p.write_text("x"), "is a file; give a folder"),
    ],
)
def test_data_that_is_not_there(tmp_path, make, words):
    make(tmp_path / "data")
    with pytest.raises(SlimdpmError, match=words):
        open_source(str(tmp_path / "data"))


def test_a_folder_of_broken_files_is_refused_and_leaves_no_cache(tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_text("no image")
    with pytest.raises(SlimdpmError, match="none of the 3 images can be read; the first is 0.png"):
        prepare_images(open_source(str(folder)), Decoder(16), cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_arrays_of_every_layout(tmp_path):
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", rgb)
    np.savez(tmp_path / "named.npz", names=np.array(["x"] * 5), images=rgb)
    np.savez_compressed(tmp_path / "plain.npz", rgb)
    for name in ("a.npy", "named.npz", "plain.npz"):
        images = prepare_images(open_source(str(tmp_path / name)), Decoder(16), cache=tmp_path)
        np.testing.assert_array_equal(images.square(2), rgb[2])
    assert not list(tmp_path.glob("images-*"))  # squares of the right size need no cache
    grey = prepare_images(Arrays(rgb[..., 0]), Decoder(8))
    assert grey.square(0).shape == (8, 8, 3)
    np.savez(tmp_path / "floats.npz", images=rgb / 255.0)
    (tmp_path / "bad.npz").write_bytes(b"PK no zip")
    for name in ("floats.npz", "bad.npz"):
        with pytest.raises(SlimdpmError, match="uint8|cannot be read"):
            open_source(str(tmp_path / name))
    with pytest.raises(SlimdpmError, match="expected uint8 images of shape"):
        open_source(np.zeros((4, 8, 8, 2), np.uint8))


def test_pickles_in_arrays_are_refused(tmp_path):
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(SlimdpmError, match="cannot be read as an array"):
        open_source(str(tmp_path / "p.npy"))


def test_hugging_face_data_sets(tmp_path, image_folder):
    import datasets  # heavy: only here

    paths = [str(p) for p in sorted(image_folder.rglob("*.png"))]
    dataset = datasets.Dataset.from_dict({"n": list(range(12)), "photo": paths}).cast_column("photo", datasets.Image())
    dataset.save_to_disk(tmp_path / "set")
    datasets.DatasetDict({"train": dataset}).save_to_disk(tmp_path / "dict")
    expected = prepare_images(open_source(str(image_folder)), Decoder(16)).square(0)
    for source in (dataset, str(tmp_path / "set"), f"hf:{tmp_path / 'dict'}"):
        images = prepare_images(open_source(source), Decoder(16))
        assert len(images) == 12
        np.testing.assert_array_equal(images.square(0), expected)
    with pytest.raises(SlimdpmError, match="no image column; data.column can be one of n"):
        open_source(dataset.remove_columns("photo"))
    with pytest.raises(SlimdpmError, match="cannot be loaded"):
        open_source("hf:nobody/nothing-here")


# -- the stream -----------------------------------------------------------------------------------------------------


@pytest.fixture
def numbered():
    """Ten images whose every pixel is their number."""
    return prepare_images(Arrays(np.arange(10, dtype=np.uint8).repeat(48).reshape(10, 4, 4, 3)), Decoder(4))


def numbers(batch):
    return ((batch["images"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_every_pass_is_a_fresh_permutation(numbered):
    stream = TrainingStream(numbered, seed=3)
    seen = numbers(stream[range(30)])
    passes = [seen[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(p) == list(range(10)) for p in passes)
    assert passes[0] != passes[1] != passes[2]
    assert seen != numbers(TrainingStream(numbered, seed=4)[range(30)])


def test_a_later_start_gives_the_rest_of_the_same_stream(numbered):
    whole = list(training_loader(TrainingStream(numbered), StreamBatches(4, 0, 6)))
    rest = list(training_loader(TrainingStream(numbered), StreamBatches(4, 2, 6)))
    assert all(torch.equal(a["images"], b["images"]) for a, b in zip(whole[2:], rest, strict=True))


def test_processes_share_the_batches_of_one(numbered):
    whole = list(training_loader(TrainingStream(numbered), StreamBatches(4, 0, 5)))
    shares = [
        list(training_loader(TrainingStream(numbered), StreamBatches(2, 0, 5, rank=r, world_size=2))) for r in (0, 1)
    ]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert torch.equal(batch["images"], torch.cat([first["images"], second["images"]]))


def test_flips_mirror_half_of_the_images_and_follow_the_seed():
    ramp = np.tile(np.arange(4, dtype=np.uint8) * 50, (1, 4, 1))[..., None].repeat(3, -1)
    images = prepare_images(Arrays(ramp.repeat(20, 0)), Decoder(4))

    def flipped(*batches):
        seen = [TrainingStream(images, flip=True, seed=1)[batch]["images"] for batch in batches]
        return [bool(x[0, 0, 0] > x[0, 0, -1]) for batch in seen for x in batch]

    whole = flipped(range(400))
    assert 150 < sum(whole) < 250
    assert whole == flipped(range(150), range(150, 400))


def test_random_crops_are_decoded_by_workers_and_do_not_depend_on_them(image_folder, tmp_path):
    images = prepare_images(open_source(str(image_folder)), Decoder(16, crop="random"), cache=tmp_path)
    assert images.squares is None and not list(tmp_path.glob("*.npy"))
    here, there = (
        list(training_loader(TrainingStream(images, flip=True), StreamBatches(4, 0, 6), workers=w)) for w in (0, 2)
    )
    assert all(torch.equal(a["images"], b["images"]) for a, b in zip(here, there, strict=True))


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_for_a_gpu_workers_read_what_is_cached(numbered, monkeypatch):
    """One process reads 6,000 small images a second, and launches no kernel meanwhile."""
    asked = []
    monkeypatch.setattr(stream, "Loader", lambda *args, **options: asked.append(options["num_workers"]) or [])
    for pin in (False, True):
        training_loader(TrainingStream(numbered), StreamBatches(4, 0, 6), workers=2, pin=pin)
    assert asked == [0, 2]


def test_pixels_survive_the_way_to_the_model_and_back():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    np.testing.assert_array_equal(to_pixels(to_model_range(values))[..., 0].ravel(), np.arange(256))


def test_grid():
    tiles = np.stack([np.full((2, 2, 3), v, np.uint8) for v in (0, 50, 100)])
    sheet = np.asarray(grid(tiles, columns=2, gap=1))
    assert sheet.shape == (5, 5, 3)
    assert sheet[0, 0, 0] == 0 and sheet[0, 3, 0] == 50 and sheet[3, 0, 0] == 100 and sheet[3, 3, 0] == 255
    assert np.asarray(grid(tiles, columns=3, zoom=4)).shape == (8, 28, 3)

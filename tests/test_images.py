"""What image files hold: formats that nothing else decodes, deep greyscale, shapes that would take gigabytes."""

import subprocess

import numpy as np
import pytest
from PIL import Image

from slimdpm.data.dataset import Decoder, prepare_images
from slimdpm.data.images import FORMATS, open_image, pixels, square, upright
from slimdpm.data.open_source import open_source

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n(proof) (w) file\n%%EOF\n"


def test_postscript_under_another_name_starts_no_process(tmp_path, monkeypatch):
    for name in ("check_call", "Popen"):
        monkeypatch.setattr(subprocess, name, lambda *a, **k: pytest.fail("a process was started"))
    (tmp_path / "photo.png").write_bytes(POSTSCRIPT)
    with Image.open(tmp_path / "photo.png") as image:
        assert image.format == "EPS"  # what Pillow would take it for
    Image.new("RGB", (16, 16)).save(tmp_path / "good.png")
    images = prepare_images(open_source(str(tmp_path)), Decoder(16))
    assert len(images) == 1 and "1 of 2 images cannot be read and are skipped: photo.png" in images.report_broken()
    assert not {"EPS", "WMF", "FITS", "HDF5", "MPEG"} & set(FORMATS)


@pytest.mark.parametrize("depth", ["16 bits", "16 bits, big-endian", "whole numbers", "PGM", "floating"])
@pytest.mark.parametrize("brightest", [1.0, 0.1, 0.003])
def test_deep_greyscale_does_not_depend_on_its_own_maximum(tmp_path, depth, brightest):
    light = np.linspace(0, brightest, 64).reshape(8, 8)  # 0 is black, 1 white
    whole = (light * 65535).round()
    if depth == "PGM":
        file = tmp_path / "a.pgm"
        file.write_bytes(b"P5\n8 8\n65535\n" + whole.astype(">u2").tobytes())
    else:
        file = tmp_path / ("a.png" if depth == "16 bits" else "a.tif")
        kinds = {"16 bits": "<u2", "16 bits, big-endian": ">u2", "whole numbers": np.int32, "floating": np.float32}
        Image.fromarray((light if depth == "floating" else whole).astype(kinds[depth])).save(file)
    np.testing.assert_array_equal(pixels(upright(open_image(file)))[..., 0], (whole / 257).round())


@pytest.mark.parametrize(
    ("kind", "values"), [(np.int32, (0, 10**6)), (np.float32, (0, 255)), (np.float32, (0, np.nan))]
)
def test_deep_greyscale_of_an_unknown_range_is_named(tmp_path, kind, values):
    Image.fromarray(np.array([values], kind)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="greyscale from .*: black must be 0 and white"):
        upright(open_image(tmp_path / "a.tif"))


@pytest.mark.parametrize("shape", [(40, 700), (700, 40)])
@pytest.mark.parametrize("size", [16, 40, 100])
def test_a_long_image_is_cropped_first_and_comes_out_the_same(shape, size):
    long = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    scale = size / 40
    whole = long.resize([round(side * scale) for side in reversed(shape)], Image.Resampling.BILINEAR)
    left, top = ((side - size) // 2 for side in whole.size)
    expected = whole.crop((left, top, left + size, top + size))
    np.testing.assert_allclose(pixels(square(long, size)), pixels(expected), atol=1)


def test_a_thin_image_takes_little_memory(monkeypatch):
    made, resize = [], Image.Image.resize

    def noted(self, size, *args):
        made.append(size)
        return resize(self, size, *args)

    monkeypatch.setattr(Image.Image, "resize", noted)
    thin = Image.new("RGB", (1, 1_000_000), "red")  # as a whole it would be 512 million pixels high
    for crop in ("center", "random"):
        found = square(thin, 512, crop=crop, rng=np.random.default_rng(0))
        assert colour_of(found) == {(255, 0, 0)}
    assert made == [(512, 512)] * 2


def colour_of(image):
    assert image.size == (512, 512)
    return {colour for _, colour in image.getcolors()}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_beyond_all_measure_is_not_decoded(tmp_path):
    header = b"P5\n20000 8000\n255\n"
    (tmp_path / "a.pgm").write_bytes(header + bytes(100))
    with pytest.raises(ValueError, match="20000x8000 pixels are too many, 134,217,728 at most"):
        open_image(tmp_path / "a.pgm")

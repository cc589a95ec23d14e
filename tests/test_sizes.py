"""Sizes and channels: a run at another size than its teacher's, rectangles, transparency."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    UNet2DModel,
    VQModel,
)
from helpers import (
    AUTOENCODER,
    CLASSES,
    NAMES,
    TINY,
    TRIAL,
    class_pipeline,
    latent_pipeline,
    text_pipeline,
    xl_pipeline,
)
from PIL import Image
from test_kinds import transformer
from typer.testing import CliRunner

from slimdpm import ClassConditionalLDMPipeline
from slimdpm.cli.main import app
from slimdpm.conditioning import Request, conditioning_of
from slimdpm.data.arrays import Arrays
from slimdpm.data.dataset import Decoder, prepare_images
from slimdpm.data.images import on_white, pixels, square, upright
from slimdpm.data.open_source import open_source
from slimdpm.method.cost import measure
from slimdpm.method.losses import frequency_loss, spectral_weight
from slimdpm.method.networks import network_config
from slimdpm.metrics.evaluate import Settings, evaluate
from slimdpm.metrics.extractors import Extractor
from slimdpm.metrics.sliced import laplacian_pyramid, patches
from slimdpm.metrics.spectrum import radial_spectrum, ring_powers
from slimdpm.pipelines.fitting import size_step
from slimdpm.pipelines.sample_files import write_samples
from slimdpm.pipelines.shell import network_of, shell_of
from slimdpm.pipelines.teacher import load_teacher
from slimdpm.recipe_file import load_recipe
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.sizes import described, nearest, size_of
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

pytestmark = pytest.mark.slow

PHOTOS = np.random.default_rng(0).integers(0, 256, (6, 30, 40, 4), dtype=np.uint8)
WIDE = {"sample_size": [48, 64], "block_out_channels": (8, 16)}


def pixel_pipeline(channels=3, **options):
    unet = UNet2DModel(**{**TINY, "in_channels": channels, "out_channels": channels, **options})
    return DDPMPipeline(unet, DDPMScheduler())


def planned(teacher, data, size=None, **settings):
    values = {"task": "slim", "teacher": "given", "student": {"width": 8}}
    values["data"] = {"path": data if isinstance(data, str) else "given", "size": size}
    settings = {"train.steps": 2, **settings}
    return plan_job(load_recipe(None, TRIAL, values=values, settings=settings), teacher=teacher, data=data)


def check_samples(run, height, width):
    """The pictures of teacher and student are rows of images of this size, enlarged alike."""
    zoom = max(1, 96 // max(height, width))
    for name in ("teacher", "student"):
        sheet = Image.open(run / "samples" / f"{name}.png")
        assert sheet.height == zoom * height and (sheet.width + 2) % (zoom * width + 2) == 0
    assert (run / "report.html").is_file()


def test_sizes_are_written_in_many_ways():
    assert [size_of(value) for value in (48, "48", "48x64", "48×64", [48, 64], (64, 64))] == [
        48, 48, (48, 64), (48, 64), (48, 64), 64,
    ]  # fmt: skip
    for value in ("x", "48x", "1x2x3", -1, 0, 48.0, True, [48, "a"], {}, None, "9" * 5000, 10**6, "٣٢x-4"):
        with pytest.raises(ValueError, match="a size is a number of pixels or height x width"):
            size_of(value)
    assert (described(16), described((48, 64), "×")) == ("16x16", "48×64")
    assert nearest(15, 2) == [14, 16] and nearest((13, 16), 4) == [(12, 16), 16] and nearest(16, 4) == [16]


def test_a_recipe_keeps_squares_as_numbers_and_bounds_all():
    def of(size):
        return load_recipe(None, values={"task": "train", "data": {"path": "x", "size": size}})

    assert (of(16).data.size, of([16, 16]).data.size, of("48x64").data.size) == (16, 16, (48, 64))
    assert "size: 16\n" in of("16").to_yaml()
    assert load_recipe(None, values=json.loads(of([48, 64]).model_dump_json())).data.size == (48, 64)
    for size in (3, [4, 3], 10**9, [8, 10**9], "abc"):
        with pytest.raises(SlimdpmError, match=r"data\.size"):
            of(size)


def test_the_rectangle_is_cut_from_the_middle():
    wide = np.zeros((20, 80, 3), np.uint8)
    wide[:, 18:62] = 255  # the middle half and what a filter reaches beyond it
    assert pixels(square(Image.fromarray(wide), (10, 20))).min() == 255
    tall = Image.fromarray(wide.transpose(1, 0, 2))
    assert square(tall, (10, 20)).size == (20, 10) and pixels(square(tall, (20, 10))).min() == 255
    assert square(Image.new("L", (1, 500)), (4, 8)).size == (8, 4)  # long: a part of it alone is resized
    with_crop = {square(tall, (20, 20), crop="random", rng=np.random.default_rng(i)).tobytes() for i in range(9)}
    assert len(with_crop) > 1


def test_transparency_stays_where_the_network_has_it():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert pixels(upright(clear, 4))[0, 0].tolist() == [255, 0, 0, 0]
    assert pixels(upright(clear, 3))[0, 0].tolist() == [255, 255, 255]
    assert pixels(upright(Image.new("RGB", (4, 4), "red"), 4))[0, 0].tolist() == [255, 0, 0, 255]
    assert pixels(upright(Image.new("CMYK", (4, 4)), 2)).tolist() == [[[255, 255]] * 4] * 4
    half = np.array([[[0, 100, 200, 128]]], np.uint8)
    expected = Image.alpha_composite(Image.new("RGBA", (1, 1), "white"), Image.fromarray(half)).convert("RGB")
    assert np.abs(on_white(half).astype(int) - pixels(expected)).max() <= 1
    assert on_white(half[..., :3]).tolist() == half[..., :3].tolist()
    assert on_white(np.array([[[7, 0]]], np.uint8)).tolist() == [[[255]]]


def test_spectra_of_rectangles():
    noise = np.random.default_rng(0).normal(0, 0.5, (200, 24, 32, 1))
    flat = ring_powers(noise).mean(axis=0)
    assert len(flat) == 12 and flat[1:] == pytest.approx(np.full(11, 0.25), rel=0.05)
    y, x = np.mgrid[:24, :32]
    for wave in (np.cos(2 * np.pi * x / 4), np.cos(2 * np.pi * y / 4)):  # a quarter of a cycle per pixel either way
        found = radial_spectrum(((wave[None, ..., None] + 1) * 127).astype(np.uint8))
        assert found.frequency[found.power.argmax()] == 0.25
    np.testing.assert_array_equal(ring_powers(noise.transpose(0, 2, 1, 3)).shape, (200, 12))
    assert [tuple(level.shape[-2:]) for level in laplacian_pyramid(torch.zeros(1, 4, 32, 64))] == [(32, 64), (16, 32)]
    cut = patches([PHOTOS, PHOTOS])
    assert {side: p.shape for side, p in cut.items()} == {30: (12, 8, 4 * 49)}
    # A ramp from left to right: places are drawn over the whole width.
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None], (99, 16, 64, 1))
    assert np.unique(patches([ramp])[16][..., 0]).size == 64 - 7 + 1


def test_losses_of_rectangles():
    """The half plane of the transform against the whole one in float64."""
    x0, a, b = torch.randn(3, 2, 4, 10, 14).unbind()
    weight = spectral_weight(x0, (5, 7), resize="area")
    whole = torch.fft.fft2(torch.nn.functional.interpolate(x0.double(), (5, 7), mode="area"), norm="ortho")
    omega = whole.abs().square().mean(dim=1, keepdim=True).rsqrt()
    omega = omega / omega.mean(dim=(-2, -1), keepdim=True)
    torch.testing.assert_close(weight.double(), omega[..., :4], rtol=1e-4, atol=1e-6)
    a, b = a[..., :5, :7], b[..., :5, :7]
    expected = (omega * torch.fft.fft2((a - b).double(), norm="ortho").abs().square()).mean()
    torch.testing.assert_close(frequency_loss([(a, b)], [weight]).double(), expected, rtol=1e-4, atol=1e-6)


def test_a_rectangular_pixel_teacher(tmp_path):
    job = planned(pixel_pipeline(**WIDE), PHOTOS[..., :3])
    assert job.shell.image_size == (48, 64) and job.recipe.data.size == (48, 64)
    assert job.describe()[-1].endswith("as 48x64")
    student = run_job(job, tmp_path / "run")
    check_samples(tmp_path / "run", 48, 64)
    assert "48×64" in (tmp_path / "run" / "report.html").read_text()
    again = DDPMPipeline.from_pretrained(tmp_path / "run" / "student")
    for a, b in zip(student.unet.state_dict().values(), again.unet.state_dict().values(), strict=True):
        torch.testing.assert_close(a.cpu(), b)
    assert again(num_inference_steps=1, output_type="np").images.shape == (1, 48, 64, 3)
    write_samples(str(tmp_path / "run"), tmp_path / "made", count=1, steps=1, scheduler="ddim", device="cpu")
    assert Image.open(tmp_path / "made" / "00000.png").size == (64, 48)


def test_a_pixel_teacher_with_transparency(tmp_path):
    run_job(planned(pixel_pipeline(4), PHOTOS), tmp_path / "run")
    assert Image.open(tmp_path / "run" / "samples" / "student.png").mode == "RGBA"
    again = DDPMPipeline.from_pretrained(tmp_path / "run" / "student")
    assert again(num_inference_steps=1).images[0].mode == "RGBA"
    again.save_pretrained(tmp_path / "again")
    write_samples(str(tmp_path / "again"), tmp_path / "made", count=1, steps=1, scheduler="ddim", device="cpu")
    assert Image.open(tmp_path / "made" / "00000.png").mode == "RGBA"


def test_channels_that_no_image_has_are_refused(tmp_path):
    with pytest.raises(SlimdpmError, match=r"images of 5 channels are not supported: 1 \(L\), 2 \(LA\), 3"):
        planned(pixel_pipeline(5), PHOTOS)
    Image.fromarray(PHOTOS[0, ..., :2].copy()).save(tmp_path / "a.png")
    job = planned(pixel_pipeline(2), str(tmp_path))
    images = prepare_images(job.source, Decoder(job.shell.image_size, job.shell.image_channels))
    assert images.square(0).shape == (16, 16, 2)


def test_a_run_at_another_size_than_its_teacher(tmp_path, class_folder):
    """In pixels, in latents and with classes, the run's size is everywhere the run's."""
    data = PHOTOS[..., :3]
    run_job(planned(pixel_pipeline(), data, 24, **{"train.sample_every": 2}), tmp_path / "pixels")
    check_samples(tmp_path / "pixels", 24, 24)
    run_job(planned(latent_pipeline(VQModel), data, (16, 24)), tmp_path / "latents")
    check_samples(tmp_path / "latents", 16, 24)
    again = json.loads((tmp_path / "latents" / "student" / "unet" / "config.json").read_text())
    assert again["sample_size"] == [8, 12]
    run_job(planned(class_pipeline(), str(class_folder), (16, 24)), tmp_path / "classes")
    again = ClassConditionalLDMPipeline.from_pretrained(tmp_path / "classes" / "student")
    assert again(CLASSES[1], num_inference_steps=1).images[0].size == (24, 16)


def test_images_that_the_teacher_makes_have_the_run_s_size(tmp_path):
    few = {"data.samples.count": 3, "data.samples.steps": 1}
    run_job(planned(latent_pipeline(AutoencoderKL), "teacher", "24x16", **few), tmp_path / "run", report=False)
    assert list((tmp_path / "run" / "cache").glob("samples-*"))
    assert (tmp_path / "run" / "student").is_dir()


def test_text_is_told_the_run_s_height_and_width(tmp_path):
    pipeline = xl_pipeline(tmp_path)
    text = conditioning_of(pipeline, pipeline.unet, 16).sized((16, 24))
    given = text.sampling_inputs(range(1), Request(prompts=["a"], guidance=1), torch.device("cpu")).given
    told = pipeline._get_add_time_ids((16, 24), (0, 0), (16, 24), torch.float32, text_encoder_projection_dim=10)
    torch.testing.assert_close(given["added_cond_kwargs"]["time_ids"], told)


def test_cross_attention_copes_with_odd_sizes(tmp_path):
    pipeline = text_pipeline(tmp_path)
    # U-Nets with cross-attention bring back odd sizes, gated students as well.
    Image.fromarray(PHOTOS[0]).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "abc"}\n')
    job = planned(pipeline, str(tmp_path), (22, 18))
    assert job.shell.size == (11, 9) and job.plan.config["sample_size"] == (11, 9)
    with pytest.raises(SlimdpmError, match="autoencoder halves .* multiple of 2; set data.size to 22 or 22x24"):
        planned(pipeline, str(tmp_path), (22, 23))


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((13, 16), "images of 13x16 do not fit: the teacher .* a multiple of 2; set data.size to 12x16 or 14x16"),
        ("1x2", "data.size"),
    ],
)
def test_sizes_that_a_network_does_not_give_back(size, words):
    with pytest.raises(SlimdpmError, match=words):
        planned(pixel_pipeline(), PHOTOS, size)


@pytest.mark.parametrize(
    ("pipeline", "size", "step"),
    [
        (class_pipeline, 16, 2),  # two levels
        (lambda: latent_pipeline(VQModel), 16, 4),  # behind an autoencoder of two more
        (lambda: pixel_pipeline(**WIDE), (48, 64), 2),
        (lambda: pixel_pipeline(), 2, None),  # a network that halves it to one pixel
        (lambda: pixel_pipeline(), 15, None),
        (transformer, 16, None),
    ],
)
def test_the_step_of_sizes_is_what_levels_and_autoencoder_halve(pipeline, size, step):
    made = pipeline()
    shell = shell_of(made).sized(size)
    assert size_step(shell, network_config(network_of(made))) == step


def test_a_transformer_takes_squares_of_whole_patches(class_folder):
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        num_embeds_ada_norm=3, norm_num_groups=4,
    )  # fmt: skip
    autoencoder = AutoencoderKL(**{**AUTOENCODER, "latent_channels": 4})
    teacher = DiTPipeline(transformer, autoencoder, DDIMScheduler(clip_sample=False), id2label=NAMES)
    base = {"student.base": "pixel-32"}
    with pytest.raises(SlimdpmError, match="the teacher takes none of this shape; set data.size to 16"):
        planned(teacher, str(class_folder), (24, 16), **base)
    assert planned(teacher, str(class_folder), 24, **base).plan.config["sample_size"] == 12


def test_evaluation_of_rectangles_with_transparency(tmp_path, monkeypatch):
    seen = []

    def network(x):
        seen.append(tuple(x.shape[1:]))
        return x.mean(dim=(2, 3)), None

    extractor = Extractor("means", "means", network, torch.device("cpu"))
    monkeypatch.setattr("slimdpm.metrics.evaluate.load_extractor", lambda *args, **options: extractor)
    for name in ("real", "made"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(len(name)).integers(0, 256, (12, 8, 12, 4), np.uint8))
    settings = Settings(count=12, size=(8, 12), replicates=10, device="cpu", workers=0)
    result = evaluate([str(tmp_path / "made.npy")], str(tmp_path / "real.npy"), tmp_path / "out", settings)
    assert set(seen) == {(3, 8, 12)} and "SWD 8px" in json.dumps(result.as_json())


def test_the_command_line_takes_height_and_width(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "_class_name": "UNet2DModel"}))
    outcome = CliRunner().invoke(app, ["profile", str(tmp_path), "--size", "12x20", "--json"])
    cost = measure({**TINY, "_class_name": "UNet2DModel"}, size=(12, 20))
    assert [entry["macs"] for entry in json.loads(outcome.stdout).values()] == [cost.macs]
    assert CliRunner().invoke(app, ["profile", str(tmp_path), "--size", "12y20"]).exit_code == 2


def test_arrays_with_transparency_are_taken_as_they_are(tmp_path):
    np.save(tmp_path / "a.npy", PHOTOS)
    source = open_source(str(tmp_path / "a.npy"))
    assert isinstance(source, Arrays) and source.image(0).mode == "RGBA"
    np.testing.assert_array_equal(prepare_images(source, Decoder((30, 40), 4)).square(2), PHOTOS[2])


def test_a_network_that_gives_back_another_size_is_refused_at_once(tmp_path):
    text_pipeline(tmp_path).save_pretrained(tmp_path / "teacher")
    values = {"teacher": str(tmp_path / "teacher"), "data": {"path": "teacher"}, "student": {"width": 8}}
    (tmp_path / "prompts").write_text("a dress")
    sets = ["student.overrides={conv_out_kernel: 30}", f"data.samples.prompts={tmp_path / 'prompts'}"]
    with pytest.raises(SlimdpmError, match="makes 7x7 of 8x8"):
        plan_job(load_recipe(None, sets, values=values), weights=False)
    file = tmp_path / "teacher" / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "conv_out_kernel": 30}))
    with pytest.raises(SlimdpmError, match="makes 7x7 of 8x8"):
        load_teacher(tmp_path / "teacher", weights=False)

"""The command line in its own process: what it prints, and one line and exit code 2 for a user's mistake."""

import itertools
import json
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DModel, VQModel
from helpers import TINY, TRIAL, Forked, command, embedded_class_pipeline, latent_pipeline
from typer.testing import CliRunner

import slimdpm
from slimdpm import SlimdpmError
from slimdpm.cli import main
from slimdpm.cli.main import app
from slimdpm.pipelines.image_time import ImageTime, image_times
from slimdpm.pipelines.shell import shell_of

QUICK = ["--width", "8", "--steps", "2", *(word for setting in TRIAL for word in ("--set", setting))]


def invoke(*arguments):
    """In this process, for speed; a mistake is raised instead of printed."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    return result.output


@pytest.mark.slow
def test_slim_then_sample_then_plain_diffusers(tmp_path, teacher_folder, image_folder):
    done = Forked(command("slim", teacher_folder, image_folder, "-o", tmp_path / "run", "--gated", *QUICK)).wait()
    assert done.code == 0, done.err
    for words in (
        "student: SpectralUNet2DModel, channels 8-16",
        "feature pairs: down_blocks.0",
        "distilling: 2/2 steps",
        "report:",
    ):
        assert words in done.out
    assert "images/s" in done.out and "spatial" in done.out
    assert done.err == ""
    invoke("sample", tmp_path / "run", "-n", 3, "--steps", 2, "--scheduler", "dpm++", "-o", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("0*.png"))) == 3
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "run" / "student")
    assert type(pipeline.unet) is slimdpm.SpectralUNet2DModel


@pytest.mark.slow
def test_train_a_teacher_and_its_lite_baseline(tmp_path, image_folder):
    (tmp_path / "net.json").write_text(json.dumps({**TINY, "_class_name": "UNet2DModel"}))
    quick = QUICK[2:]
    invoke("train", image_folder, "-o", tmp_path / "teacher", "--model", tmp_path / "net.json", *quick)
    out = invoke("train", image_folder, "-o", tmp_path / "lite", "--like", tmp_path / "teacher", "--ratio", "3", *quick)
    assert "times the student's MACs" in out
    lite = DiffusionPipeline.from_pretrained(tmp_path / "lite" / "student")
    assert type(lite.unet) is UNet2DModel and lite.unet.config.block_out_channels != [16, 32]


def test_profile_prints_the_papers_figures():
    out = invoke("profile", "ldm4-spectral", "ldm4-lite", "--against", "ldm4")
    assert "21.17 M" in out and "6.688 G" in out and "8.169 G" in out and "14.36" in out and "12.23" in out
    values = json.loads(invoke("profile", "ldm4-spectral", "--against", "ldm4", "--json"))
    assert values["ldm4-spectral"]["params"] == 21171059
    assert values["ldm4-spectral"]["ratio"] == pytest.approx(14.357, abs=0.001)


@pytest.mark.slow
def test_profile_measures_networks_and_the_students_that_a_ratio_makes_of_one(tmp_path):
    UNet2DModel(**TINY).save_config(tmp_path)
    words = ["profile", tmp_path, "--ratio", "2,4", "--time", "--batch", "1,2", "--rounds", "2", "--layers", "--json"]
    values = json.loads(invoke(*words))
    teacher, half, _, quarter, _ = values.values()
    assert [*values] == [str(tmp_path), "÷ 2", "÷ 2, gated", "÷ 4", "÷ 4, gated"]
    assert all(teacher["macs"] >= ratio * values[f"÷ {ratio}, gated"]["macs"] for ratio in (2, 4))
    assert teacher["megabytes"] == teacher["params"] * 4 / 1e6 and teacher["macs"] >= 2 * half["macs"]
    assert teacher["macs"] >= 4 * quarter["macs"] and half["macs"] > quarter["macs"]
    for about in values.values():
        assert [*about["seconds"]] == ["1", "2"] and about["layer_seconds"].keys() >= {"convolution", "rest"}
        assert all(0 < s["low"] <= s["median"] <= s["high"] for s in about["seconds"].values())
        assert min(about["layer_seconds"].values()) >= 0
        assert 4 * about["params"] < about["peak_bytes"]["1"] < about["peak_bytes"]["2"]
    said = invoke("profile", tmp_path, "--ratio", "2", "--time", "--batch", "1", "--rounds", "1")
    assert (
        "ms, batch 1" in said
        and "peak MB, batch 1" in said
        and "student of" in said
        and "measured on: CPU, 1 threads" in said
    )
    with pytest.raises(SlimdpmError, match="--ratio 2,x: give numbers from 1 on"):
        invoke("profile", tmp_path, "--ratio", "2,x")


def test_an_image_is_its_condition_its_steps_and_its_decoder(tmp_path, monkeypatch):
    """By a clock of one second a look: each part takes one; the guided network is called once a step, with both."""
    pipeline = embedded_class_pipeline()
    batches = []
    monkeypatch.setattr(type(pipeline.unet), "forward", noted(type(pipeline.unet).forward, batches))
    ticks = itertools.count()
    (found,) = image_times(
        {"x": (shell_of(pipeline), pipeline.unet)}, steps=7, rounds=3, clock=lambda: next(ticks)
    ).values()
    assert found == ImageTime(condition=1, step=1, decoder=1, steps=7) and found.whole == 9
    assert batches == [2] * 4  # three rounds, and one that is not counted


def noted(forward, batches):
    def called(network, sample, *args, **options):
        batches.append(len(sample))
        return forward(network, sample, *args, **options)

    return called


@pytest.mark.slow
def test_profile_times_images_of_pipelines_and_of_their_students(tmp_path):
    latent_pipeline(VQModel).save_pretrained(tmp_path)
    told = json.loads(invoke("profile", tmp_path, "--ratio", "2", "--image", "5", "--json"))
    assert len(told) == 3
    for about in told.values():
        image = about["image"]
        assert image["steps"] == 5 and image["step"] > 0 and image["decoder"] > 0
        assert image["whole"] == pytest.approx(image["condition"] + 5 * image["step"] + image["decoder"])
    assert "5 steps" in invoke("profile", tmp_path, "--image", "5")
    small, large = (
        json.loads(invoke("profile", tmp_path, "--size", size, "--image", "1", "--json")) for size in (4, 64)
    )
    assert small[str(tmp_path)]["image"]["decoder"] < large[str(tmp_path)]["image"]["decoder"]
    with pytest.raises(SlimdpmError, match="--image needs pipelines"):
        invoke("profile", "--image", "5")


@pytest.mark.parametrize("command", [[], ["slim"], ["train"], ["sample"], ["profile"], ["demo"]])
def test_help_teaches(command):
    out = invoke(*command, "--help")
    assert "Usage" in out
    if command in (["slim"], ["train"], ["sample"], ["profile"]):
        assert f"slimdpm {command[0]} " in out  # an example


def test_version():
    assert invoke("--version").strip() == f"slimdpm {version('slimdpm')}"


@pytest.fixture(scope="module")
def bad(tmp_path_factory, teacher_folder):
    """Places that a user may point at by mistake."""
    root = tmp_path_factory.mktemp("bad")
    (root / "empty").mkdir()
    (root / "broken").mkdir()
    for i in range(2):
        (root / "broken" / f"{i}.jpg").write_text("no image")
    (root / "text.txt").write_text("hello")
    (root / "other").mkdir()
    (root / "other" / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    (root / "recipe.yaml").write_text("train: {stepz: 3}\n")
    return root


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["slim", "{teacher}", "{bad}/none"], "data {bad}/none does not exist"),
        (["slim", "{teacher}", "{bad}/empty"], "{bad}/empty holds no images"),
        (["slim", "{teacher}", "{bad}/broken", *QUICK], "none of the 2 images can be read; the first is 0.jpg"),
        (["slim", "{bad}/text.txt", "{images}"], "is a file: give a diffusers folder"),
        (["slim", "{bad}/other", "{images}"], "is a StableDiffusion3Pipeline; supported are"),
        (["slim", "{teacher}", "{images}", "--size", "15"], "their size is a multiple of 2; set data.size to 14 or 16"),
        (
            ["slim", "{teacher}", "{images}", "--recipe", "{bad}/recipe.yaml"],
            "recipe: unknown key train.stepz; did you mean steps?",
        ),
        (["slim", "{teacher}", "{images}", "--set", "nonsense=1"], "recipe: unknown key nonsense"),
        (["slim", "{teacher}", "{images}", "--ratio", "0"], "student.ratio: input should be greater than 1, got 0"),
        (
            ["slim", "{teacher}", "{images}", "--ratio", "1000"],
            "student.ratio: input should be less than 1000, got 1000",
        ),
        (["slim", "{teacher}", "{images}", "--ratio", "500"], "a ratio of 500 cannot be met"),
        (["slim", "{teacher}"], "recipe: data is missing: the images, a folder"),
        (["slim"], "recipe: data is missing"),
        (["train", "{images}"], "training needs a network"),
        (["train", "{images}", "--model", "nope"], "no preset and no folder is called 'nope'"),
        (["profile", "nope"], "no preset and no folder is called 'nope'; the presets are ldm4"),
    ],
)
def test_a_mistake_is_one_line(arguments, words, bad, teacher_folder, image_folder, tmp_path):
    places = {"teacher": teacher_folder, "images": image_folder, "bad": bad}
    arguments = [a.format(**places) for a in arguments]
    output = ["-o", str(tmp_path / "run")] if arguments[0] in ("slim", "train") else []
    with pytest.raises(SlimdpmError) as error:
        invoke(*arguments, *output)
    assert words.format(**places) in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())  # nothing is written


@pytest.mark.slow
def test_a_mistake_exits_with_two_and_no_traceback(tmp_path, teacher_folder):
    done = Forked(command("slim", teacher_folder, tmp_path / "none", "-o", tmp_path / "run")).wait()
    assert done.code == 2
    assert done.err.splitlines() == [
        f"error: data {tmp_path}/none does not exist (a data set of the Hugging Face hub is written hf:NAME)"
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_same_from_python(tmp_path, teacher_folder):
    teacher = DiffusionPipeline.from_pretrained(teacher_folder)
    data = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    settings = {"train.batch_size": 4, "train.trackers": [], "samples.count": 2, "samples.steps": 2}
    options = {"steps": 2, "settings": settings, "progress": False}
    student = slimdpm.slim(teacher, data, ratio=3, **options)
    assert type(student.unet) is type(teacher.unet)  # without gates by default
    assert student(batch_size=1, num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)
    kept = slimdpm.slim(teacher, data, ratio=3, output=tmp_path / "run", **options)
    assert all(torch.equal(a, b) for a, b in zip(student.unet.parameters(), kept.unet.parameters(), strict=True))
    with pytest.raises(SlimdpmError, match="data.path differs"):  # other images in the same folder
        slimdpm.slim(teacher, data[::-1].copy(), ratio=3, output=tmp_path / "run", **options)
    for name in ("recipe", "output"):
        with pytest.raises(SlimdpmError, match=f"{name} is no path: 5"):
            slimdpm.slim(teacher, data, **{**options, "ratio": 3, name: 5})


@pytest.mark.slow
def test_train_from_python(image_folder):
    settings = {"train.batch_size": 4, "train.trackers": [], "samples.count": 2, "samples.steps": 2}
    overrides = {"student.overrides": {"block_out_channels": [8, 8, 16]}}
    pipeline = slimdpm.train(
        image_folder, model="pixel-32", size=16, steps=1, settings={**settings, **overrides}, progress=False
    )
    assert pipeline.unet.config.sample_size == 16


@pytest.mark.slow
def test_what_fails_while_an_error_is_torn_down_is_not_told(tmp_path):
    """As a loader's processes do with few file handles: Python would print their traceback after the message."""

    class Loader:
        def __del__(self):
            raise OSError("too late")

    def failing(*_, **__):
        loader = Loader()  # noqa: F841
        raise SlimdpmError("told")

    def replaced():
        main.app = failing

    done = Forked(command(before=replaced)).wait()
    assert (done.code, done.err) == (2, "error: told\n")


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["slim", "--help"], ["slim", "--nope"], []])
def test_help_and_mistyped_options_load_no_library(words):
    script = """
import sys
import slimdpm_command
sys.argv = ["slimdpm", *sys.argv[1:]]
try:
    slimdpm_command.main()
finally:
    assert not {"torch", "diffusers", "transformers", "numpy"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert done.returncode == (2 if words in ([], ["slim", "--nope"]) else 0), done.stderr
    assert done.stderr.count("\n") == (words == ["slim", "--nope"]) and bool(done.stdout) != bool(done.stderr)

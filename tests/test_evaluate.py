"""`evaluate` from images to figures: resumed, shared by processes, compared; errors in one line."""

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMPipeline
from helpers import Forked, class_pipeline, command, latent_pipeline, launch
from safetensors.torch import load_file
from typer.testing import CliRunner

from slimdpm.cli.main import app
from slimdpm.conditioning import Request
from slimdpm.metrics import collect as collecting
from slimdpm.metrics.collect import Generated
from slimdpm.metrics.evaluate import Settings, evaluate
from slimdpm.metrics.extractors import load_extractor
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.shared_work import claim

pytestmark = pytest.mark.slow


class Features(torch.nn.Module):
    """A small network of fixed weights."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 6, 3, stride=2)
        torch.nn.init.normal_(self.conv.weight)

    def forward(self, x):
        return torch.relu(self.conv(x))


@pytest.fixture(scope="module")
def place(tmp_path_factory, teacher_folder):
    """A pipeline, real images, and an extractor's file."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "model").symlink_to(teacher_folder)
    images = np.random.default_rng(0).integers(0, 256, (90, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "real.npz", images=images)
    np.save(folder / "few.npy", images[:3])
    np.savez(folder / "others.npz", images=images[::-1] // 2)
    export(Features().eval(), folder / "features.onnx")
    return folder


def export(network, file, size=16, example=None):
    """An ONNX file of a network for any number of images."""
    example = torch.rand(2, 3, size, size) if example is None else example
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter without onnxscript is the older one
        torch.onnx.export(network, (example,), file, dynamo=False, dynamic_axes={"x": {0: "n"}}, input_names=["x"])


def settings(place, **values):
    return Settings(**{"count": 70, "extractor": str(place / "features.onnx"), "steps": 2, "replicates": 50, **values})


def run(place, output, models=("model",), **values):
    names = [str(place / m) for m in models]
    return evaluate(names, str(place / "real.npz"), output, settings(place, **values))


def numbers(folder):
    found = json.loads((folder / "results.json").read_text())
    return {key: found[key] for key in ("models", "ratios_to_the_first", "floor", "images")}


def test_all_metrics_are_there_with_their_intervals(place, tmp_path):
    result = run(place, tmp_path / "e", models=("model", "others.npz"))
    first, second = result.models.values()
    assert set(first) == set(second) == set(result.floor)
    assert {"precision", "recall", "log-spectral distance, dB", "power ratio 0.25-0.5", "SWD 16px"} <= set(first)
    assert "Fréchet (features.onnx)" in first and not any("FID" in name or "KID" in name for name in first)
    for name, value in first.items():
        low, high = value.interval
        assert np.isfinite(value.value) and low <= high, name
    ratio = result.ratios["others.npz"]["Fréchet (features.onnx)"]
    assert ratio.value == pytest.approx(
        second["Fréchet (features.onnx)"].value / first["Fréchet (features.onnx)"].value
    )
    assert ratio.interval[0] < ratio.value < ratio.interval[1]
    text = (tmp_path / "e" / "results.csv").read_text()
    assert "ratio to model,others.npz" in text and "two halves of the real" in text
    assert any("biased" in w for w in result.warnings) and any("no FID" in w for w in result.warnings)


def test_an_evaluation_that_was_stopped_makes_only_what_is_missing(place, tmp_path, monkeypatch):
    run(place, tmp_path / "whole")
    made = []
    real = Generated.images

    def counted(self, first, last):
        made.append((first, last))
        if len(made) == 2:
            raise KeyboardInterrupt
        return real(self, first, last)

    monkeypatch.setattr(Generated, "images", counted)
    with pytest.raises(KeyboardInterrupt):
        run(place, tmp_path / "stopped")
    run(place, tmp_path / "stopped")
    assert made == [(0, 64), (64, 70), (64, 70)]
    run(place, tmp_path / "stopped")  # and now nothing
    assert len(made) == 3
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")


@pytest.fixture(scope="module")
def one(place, tmp_path_factory):
    """The words of a command, and the folder with what one process made of it."""
    folder = tmp_path_factory.mktemp("one") / "e"
    words = [place / "model", "--against", place / "real.npz", "-n", 70, "--steps", 2, "--device", "cpu"]
    words = ["evaluate", *map(str, [*words, "--extractor", place / "features.onnx"])]
    assert Forked(command(*words, "-o", folder)).wait().code == 0
    return words, folder


def test_samples_are_found_again_by_another_process_which_says_nothing_but_what_was_asked(one):
    """Sets have another order in each process, and diffusers makes a list of one in the config of a scheduler."""
    words, folder = one
    made = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    (folder / "results.json").unlink()
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    command = [sys.executable, "-m", "slimdpm.cli", *words, "-o", str(folder)]
    done = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and (folder / "results.json").exists()
    assert made and {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")} == made


def test_more_images_keep_those_that_are_there(place, tmp_path, monkeypatch):
    made = []
    real = Generated.images
    monkeypatch.setattr(Generated, "images", lambda s, a, b: made.append((a, b)) or real(s, a, b))
    run(place, tmp_path / "e", count=130)
    run(place, tmp_path / "e", count=70)
    assert made == [(0, 64), (64, 128), (128, 130)]
    run(place, tmp_path / "fresh", count=70)
    assert numbers(tmp_path / "e") == numbers(tmp_path / "fresh")


def test_two_processes_give_the_numbers_of_one(one, tmp_path):
    words, folder = one
    both = launch(command(*words, "-o", tmp_path / "two"))
    assert [done.code for done in both] == [0, 0], both
    assert numbers(tmp_path / "two") == numbers(folder)


def test_reference_statistics_alone_are_enough_for_the_frechet_distance(place, tmp_path):
    stats = tmp_path / "stats.npz"
    names = [str(place / "model")]
    with_data = evaluate(names, str(place / "real.npz"), tmp_path / "a", settings(place), write_moments=stats)
    without = evaluate(names, None, tmp_path / "b", settings(place), reference_moments=stats)
    assert set(without.models["model"]) == {"Fréchet (features.onnx)", "Fréchet (features.onnx)∞"}
    name = "Fréchet (features.onnx)"
    assert without.models["model"][name].value == pytest.approx(with_data.models["model"][name].value, rel=1e-9)


def test_a_pipeline_with_an_autoencoder_is_measured_in_pixels(place, tmp_path):
    latent_pipeline(AutoencoderKL).save_pretrained(tmp_path / "ldm")
    models = [str(tmp_path / "ldm"), str(place / "model")]
    both = evaluate(models, str(place / "real.npz"), tmp_path / "e", settings(place))
    made = load_file(next((tmp_path / "e").glob("ldm-*/*.safetensors")))["image"]
    assert set(both.models) == {"ldm", "model"} and made.shape[1] == 16


def test_a_file_of_onnx_gives_what_its_network_gives(place):
    images = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    found, logits = load_extractor(str(place / "features.onnx"))(images)
    np.testing.assert_allclose(found, Features().eval()(x).mean(dim=(2, 3)).detach().numpy(), atol=1e-5)
    assert logits is None


class Wrong(torch.nn.Module):
    """Gives something that is no features of each image."""

    def __init__(self, give):
        super().__init__()
        self.give = give

    def forward(self, x):
        return self.give(x)


@pytest.mark.parametrize(
    ("give", "size", "words"),
    [
        (lambda x: x.sum(), 16, r"gives a tensor of shape \(\) for 1 images"),
        (lambda x: x.flatten(1)[:, :3] / 0, 16, "gives infinite or undefined features"),
        (lambda x: x.flatten(1).repeat(1, 20), 16, r"shape \(1, 15360\) .* D at most 8,192"),
        (lambda x: x.flatten(1) @ torch.ones(3 * 8 * 8, 2).view(192, 2)[: x[0].numel()], 8, None),
    ],
)
def test_an_extractor_is_tried_before_anything_is_made(place, tmp_path, give, size, words):
    export(Wrong(give), tmp_path / "wrong.onnx", size)
    if words is None:  # of a fixed size: images are brought to it
        assert load_extractor(str(tmp_path / "wrong.onnx"))(np.zeros((2, 16, 16, 3), np.uint8))[0].shape == (2, 2)
        return
    with pytest.raises(SlimdpmError, match=words):
        run(place, tmp_path / "e", extractor=str(tmp_path / "wrong.onnx"))
    assert not (tmp_path / "e").exists()


def test_what_is_no_network_of_images_is_one_line(place, tmp_path):
    (tmp_path / "noise.onnx").write_bytes(np.random.default_rng(0).bytes(500))
    with pytest.raises(SlimdpmError, match=r"noise.onnx cannot be read as an ONNX network"):
        load_extractor(str(tmp_path / "noise.onnx"))
    export(Wrong(lambda x: x), tmp_path / "flat.onnx", example=torch.rand(3))
    with pytest.raises(SlimdpmError, match=r"flat.onnx cannot be read as an ONNX network with one input of images"):
        load_extractor(str(tmp_path / "flat.onnx"))
    stretched = torch.nn.Upsample(size=(4, 4))
    example = torch.empty(1, 3, 4096, 4)
    export(stretched, tmp_path / "high.onnx", example=example)
    with pytest.raises(SlimdpmError, match=r"it wants images of \[4096, 4\] pixels"):
        load_extractor(str(tmp_path / "high.onnx"))
    (tmp_path / "code.pt").write_bytes(b"")
    with pytest.raises(SlimdpmError, match=r"is no .onnx file"):
        load_extractor(str(tmp_path / "code.pt"))


def test_what_can_be_known_is_said_before_anything_is_made(place, tmp_path, monkeypatch):
    monkeypatch.setattr(Generated, "images", lambda *_: pytest.fail("images were made"))
    other = tmp_path / "other.npz"
    np.savez(other, mu=np.zeros(7), sigma=np.eye(7))
    with pytest.raises(SlimdpmError, match=r"statistics have 7 features, features.onnx has 6: they belong to another"):
        evaluate(
            [str(place / "model")], None, tmp_path / "e", settings(place), reference_moments=tmp_path / "other.npz"
        )
    with pytest.raises(SlimdpmError, match="real has 3 images; 10 at least"):
        evaluate([str(place / "model")], str(place / "few.npy"), tmp_path / "e", settings(place))
    with pytest.raises(SlimdpmError, match=r"few.npy has 3 images; 10 at least"):
        run(place, tmp_path / "e", models=("model", "few.npy"))
    with pytest.raises(SlimdpmError, match=r"model: DDPMScheduler cannot take 2000 steps \(1000 work\)"):
        run(place, tmp_path / "e", steps=2000)
    with pytest.raises(SlimdpmError, match="each model has 9 images; 10 at least"):
        run(place, tmp_path / "e", count=9)
    with pytest.raises(SlimdpmError, match="is a folder; give a file"):
        evaluate([str(place / "model")], str(place / "real.npz"), tmp_path / "e", write_moments=tmp_path)
    (tmp_path / "file").write_text("")
    nowhere = tmp_path / "file" / "stats.npz"
    with pytest.raises(SlimdpmError, match=r"stats\.npz cannot be written"):
        evaluate([str(place / "model")], str(place / "real.npz"), tmp_path / "e", write_moments=nowhere)
    assert not (tmp_path / "e").exists()


def test_an_evaluation_does_not_go_where_something_else_is(place, tmp_path, image_folder, teacher_folder):
    for folder in (image_folder, teacher_folder, place):
        before = sorted(folder.iterdir())
        with pytest.raises(SlimdpmError, match="is not empty and holds no evaluation; choose another folder"):
            run(place, folder)
        assert sorted(folder.iterdir()) == before
    with claim(tmp_path / "e"), pytest.raises(SlimdpmError, match="another process is working in"):
        run(place, tmp_path / "e")


def test_memory_holds_one_shard(place, tmp_path, monkeypatch):
    """While generating and extracting, no more than a shard of images is asked for or handed on at once."""
    seen = []
    monkeypatch.setattr(collecting, "SHARD", 16)
    extractor = load_extractor(str(place / "features.onnx"))
    real = type(extractor).__call__
    monkeypatch.setattr(type(extractor), "__call__", lambda s, images: seen.append(len(images)) or real(s, images))
    run(place, tmp_path / "e", count=50)
    assert max(seen) == 16 and sum(seen) == 3 + 90 + 50  # one image tries the extractor, and one for each set


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["MODEL"], "nothing to measure against"),
        (["none", "--against", "REAL"], "none does not exist"),
        (["MODEL", "--against", "none"], "data none does not exist"),
        (["MODEL", "--against", "FEW", "--extractor", "FEATURES", "-n", "10", "--steps", "1"], "real has 3 images"),
        (["MODEL", "MODEL", "--against", "REAL"], "given twice"),
        (["REAL", "--against", "REAL"], "put a pipeline first, or give --size"),
        (["MODEL", "--against", "REAL", "--size", "32"], "images of 16 pixels, not 32"),
        (["MODEL", "--against", "REAL", "--extractor", "vgg"], "no extractor is called 'vgg'"),
        (["MODEL", "--against", "REAL", "--extractor", "REAL"], "is no .onnx file"),
        (
            ["MODEL", "--against", "REAL", "--inception-weights", "none.pth"],
            "weights-inception-2015-12-05-6726825d.pth",
        ),
        (["MODEL", "--against", "REAL", "--inception-weights", "REAL"], "is not the standard Inception file"),
        (["MODEL", "--against", "REAL", "--reference-stats", "REAL"], "holds no mu and sigma"),
        (["MODEL", "--against", "REAL", "--scheduler", "magic"], "unknown scheduler"),
        (["MODEL", "--against", "REAL", "--device", "toaster"], "'toaster' is not to be had"),
    ],
)
def test_mistakes_are_one_line(place, tmp_path, arguments, words):
    names = {"MODEL": "model", "REAL": "real.npz", "FEW": "few.npy", "FEATURES": "features.onnx"}
    names = {key: str(place / file) for key, file in names.items()}
    done = CliRunner().invoke(app, ["evaluate", *(names.get(a, a) for a in arguments), "-o", str(tmp_path / "e")])
    assert isinstance(done.exception, SlimdpmError), done.exception
    assert words in str(done.exception) and "\n" not in str(done.exception)


@pytest.fixture(scope="module")
def student(place, teacher_folder):
    """The model's network, each weight a little off, as a pipeline beside it."""
    pipeline = DDPMPipeline.from_pretrained(teacher_folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in pipeline.unet.parameters():
            weight.add_(torch.randn(weight.shape) / 500)
    pipeline.save_pretrained(place / "student")
    return place / "student"


def test_a_student_is_compared_with_its_teachers_samples_of_the_same_noise(place, student, tmp_path):
    result = run(place, tmp_path / "e", models=("model", "student", "others.npz"))
    first, second = (load_all(tmp_path / "e", name) for name in ("model", "student"))
    off = np.array([np.sqrt(((a - b) ** 2).mean()) for a, b in zip(first, second, strict=True)])
    found = result.followed
    assert set(found.models) == {"student"}  # data starts from no noise
    assert found.models["student"].value == pytest.approx(off.mean()) and off.mean() > 1
    low, high = found.models["student"].interval
    spread = off.std() / np.sqrt(len(off))
    assert low == pytest.approx(off.mean() - 2 * spread, abs=spread) and low < off.mean() < high
    unrelated = np.mean([np.sqrt(((first[i] - first[i - 1]) ** 2).mean()) for i in range(len(first))])
    assert found.unrelated.value == pytest.approx(unrelated) and unrelated > off.mean()
    told = json.loads((tmp_path / "e" / "results.json").read_text())["from_the_first"]
    assert told["student"]["difference of pixels, of 255"]["value"] == pytest.approx(off.mean())
    assert "from model's of the same noise,student,two of model's own" in (tmp_path / "e" / "results.csv").read_text()


def load_all(folder, name):
    """The images of a model in an evaluation's folder, float64 ``(N, H, W, C)``."""
    shards = sorted(next(folder.glob(f"{name}-*")).glob("*.safetensors"))
    return np.concatenate([load_file(shard)["image"].numpy() for shard in shards]).astype(np.float64)


def test_pipelines_are_compared_without_real_images_or_features(place, student, tmp_path, monkeypatch):
    monkeypatch.setattr("slimdpm.metrics.evaluate.load_extractor", lambda *_, **__: pytest.fail("features are needed"))
    names = [str(place / "model"), str(student)]
    result = evaluate(names, None, tmp_path / "e", settings(place, extractor="inception"))
    assert result.followed.models["student"].value > 0 and result.models == {"model": {}, "student": {}}
    done = CliRunner().invoke(app, ["evaluate", *names, "-n", "70", "--steps", "2", "-o", str(tmp_path / "e")])
    assert done.exit_code == 0 and "difference of pixels, of 255" in done.output and "ratio" not in done.output
    with pytest.raises(SlimdpmError, match="nothing to measure against"):
        evaluate([names[0], str(place / "others.npz")], None, tmp_path / "f", settings(place))
    latent_pipeline(AutoencoderKL).save_pretrained(tmp_path / "ldm")  # its noise is of another shape
    with pytest.raises(SlimdpmError, match="several pipelines of one kind"):
        evaluate([names[0], str(tmp_path / "ldm")], None, tmp_path / "f", settings(place))
    assert not (tmp_path / "f").exists()


def test_samples_start_alike_where_noise_and_condition_are_the_same():
    """However strongly each is guided: a student may have learnt its teacher's guidance."""

    def start(pipeline, count=10, seed=0, **asked):
        return Generated("it", pipeline, count, seed=seed, request=Request(**asked)).start

    classes, plain = class_pipeline(), latent_pipeline(AutoencoderKL)
    assert start(classes, classes=["0"], guidance=1.0) == start(classes, classes=["0"], guidance=3.0)
    others = [start(classes, classes=["1"]), start(classes, seed=1), start(classes, count=11), start(plain)]
    assert len({start(classes), start(classes, classes=["0"]), *others}) == 6

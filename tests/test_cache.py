"""What is computed once and kept: the same bytes each time, whole after a kill, found out if a byte flips."""

import io
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from helpers import TRIAL, Forked, latent_pipeline, launch, text_pipeline
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from slimdpm import SlimdpmError
from slimdpm.cache.latents import prepare_latents
from slimdpm.cli.main import app
from slimdpm.data.arrays import Arrays
from slimdpm.data.dataset import Decoder
from slimdpm.data.images import to_model_range
from slimdpm.data.open_source import open_source
from slimdpm.pipelines.shell import shell_of
from slimdpm.recipe_file import load_recipe
from slimdpm.run_folder import RunFolder
from slimdpm.system.processes import leave
from slimdpm.system.progress import Display
from slimdpm.system.tensor_store import Layout, Store
from slimdpm.training.accelerator import make_accelerator
from slimdpm.training.plan import plan_job
from slimdpm.training.run import new_trainer, run_job

QUICK = [*TRIAL, "student.width=8", "train.steps=4", "train.log_every=1", "data.flip=true"]
CPU = torch.device("cpu")
ROWS = Layout(20, {"square": (2,), "cube": (1, 3)}, shard=4)


def made(numbers, notes):
    """Rows that follow from their numbers; an odd shard has a note."""
    values = torch.tensor(numbers, dtype=torch.float32)
    if numbers.start // 4 % 2:
        notes[numbers.start] = "odd"
    yield {"square": values[:, None].expand(-1, 2) ** 2, "cube": values[:, None, None].expand(-1, 1, 3) ** 3}


def built(folder, make=made):
    """A store, what was said, and the first rows of the shards that were made."""
    did, lines = [], io.StringIO()

    def noted(numbers, notes):
        did.append(numbers.start)
        return make(numbers, notes)

    store = Store(Path(folder), ROWS).build(noted, "rows", Display(Console(file=lines, width=500)))
    return store, lines.getvalue(), did


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(Path(folder).rglob("*.safetensors"))}


def test_rows_are_what_was_made_and_the_bytes_are_the_same_each_time(tmp_path):
    store, said, did = built(tmp_path / "one")
    assert did == [0, 4, 8, 12, 16] and "0.0 MB will be kept in" in said
    for number in (0, 7, 19):
        assert store.row(number)["square"].tolist() == [number**2] * 2
        assert store.row(number)["cube"].tolist() == [[number**3] * 3]
    assert store.notes() == {4: "odd", 12: "odd"}
    built(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 5 and contents(tmp_path / "one") == contents(tmp_path / "two")
    _, said, did = built(tmp_path / "one")
    assert did == [] and "kept in" not in said


@pytest.mark.parametrize("place", [3, 20, 70, -40, -1, "cut", "pipe"], ids=str)
def test_a_flipped_byte_is_found_and_its_shard_made_again(tmp_path, place):
    built(tmp_path)
    before = contents(tmp_path)
    broken = tmp_path / "00000008.safetensors"
    data = bytearray(before[broken.name])
    broken.unlink()
    if place == "pipe":
        os.mkfifo(broken)
    elif place == "cut":
        broken.write_bytes(data[:-10])
    else:
        data[place] ^= 1
        broken.write_bytes(data)
    _, said, did = built(tmp_path)
    assert did == [8] and said.count(f"{broken} is damaged and is made again\n") == 1
    assert contents(tmp_path) == before


def slow(numbers, notes):
    time.sleep(0.3)
    return made(numbers, notes)


def dying(numbers, notes):
    if numbers.start == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return made(numbers, notes)


def at_work(folder, make=slow):
    """What builds a store in another process and prints what it did."""

    def work():
        print(*built(folder, make)[2], sep="\n")
        leave()

    return work


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_a_usable_part(tmp_path):
    assert Forked(at_work(tmp_path / "store", dying)).wait().code == -9
    assert len(contents(tmp_path / "store")) == 3
    leftover = tmp_path / "store/.00000016.safetensors.tmp-1"
    leftover.write_bytes(b"half")  # what a kill in the middle of writing leaves
    _, _, did = built(tmp_path / "store")
    assert did == [12, 16] and not leftover.exists()
    built(tmp_path / "whole")
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_two_strangers_share_the_work(tmp_path):
    both = [process.wait() for process in [Forked(at_work(tmp_path / "store")) for _ in range(2)]]
    did = [[int(line) for line in done.out.split()] for done in both]
    assert sorted(did[0] + did[1]) == [0, 4, 8, 12, 16]
    built(tmp_path / "whole")
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_of_a_launch_share_the_work(tmp_path):
    both = launch(at_work(tmp_path / "store"))
    assert [done.code for done in both] == [0, 0], both
    did = [[int(line) for line in done.out.split()] for done in both]
    assert did == [[0, 8, 16], [4, 12]]
    built(tmp_path / "whole")
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_a_longer_store_has_the_shards_of_a_shorter_one(tmp_path):
    Store(tmp_path / "grown", Layout(6, ROWS.parts, shard=4)).build(made, "rows", Display())
    _, said, did = built(tmp_path / "grown")
    assert did == [4, 8, 12, 16] and "damaged" not in said  # the one of two rows is too short
    built(tmp_path / "whole")
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")
    Store(tmp_path / "grown", Layout(6, ROWS.parts, shard=4)).build(pytest.fail, "rows", Display())


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(SlimdpmError, match=r"rows: 0.0 MB are needed in .*, 0.0 MB are free; name another folder"):
        built(tmp_path)
    assert not contents(tmp_path)


@pytest.fixture
def photos(tmp_path):
    """Twenty 20x16 PNGs, one of them broken."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    (folder / "07.png").write_text("no image")
    return folder


def latents(pipeline, photos, root, *, flip=True, decoder=None, **options):
    root.mkdir(exist_ok=True)
    source, decoder = open_source(str(photos)), decoder or Decoder(16)
    options = {"device": CPU, "workers": 2, "display": Display(), **options}
    return prepare_latents(source, decoder, shell_of(pipeline), root, flip=flip, **options)


@pytest.mark.parametrize("kind", [VQModel, AutoencoderKL])
def test_latents_are_what_the_autoencoder_gives_image_and_mirror_image(kind, photos, tmp_path):
    pipeline = latent_pipeline(kind)
    images = latents(pipeline, photos, tmp_path / "cache")
    assert [name for name, _ in images.broken] == ["07.png"] and len(images) == 19
    for number, file in ((0, "00.png"), (7, "08.png")):
        square = np.asarray(Image.open(photos / file))[:, 2:18]
        for mirrored in (False, True):
            pixels = to_model_range(torch.from_numpy(square[:, :: -1 if mirrored else 1].copy()).permute(2, 0, 1))
            with torch.no_grad():
                encoded = pipeline.vqvae.encode(pixels[None])
            found = images.moments(number, mirrored)
            if kind is VQModel:
                expected = {"sample": encoded.latents[0] * pipeline.vqvae.config.scaling_factor}
            else:
                expected = {"mean": encoded.latent_dist.mean[0], "logvar": encoded.latent_dist.logvar[0]}
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_kl_latent_is_drawn_anew_each_time(photos, tmp_path):
    pipeline = latent_pipeline(AutoencoderKL)
    images, shell = latents(pipeline, photos, tmp_path / "cache"), shell_of(pipeline)
    batch = {"latents": {part: rows.expand(4000, -1, -1, -1) for part, rows in images.moments(3, False).items()}}
    drawn = shell.clean_samples(batch, CPU) / pipeline.vqvae.config.scaling_factor
    mean, deviation = images.moments(3, False)["mean"], (images.moments(3, False)["logvar"] / 2).exp()
    torch.testing.assert_close(drawn.mean(0), mean, atol=5 * deviation.max().item() / 4000**0.5, rtol=0)
    torch.testing.assert_close(drawn.std(0), deviation, rtol=0.1, atol=0)


def test_latents_belong_to_content_autoencoder_and_preprocessing(photos, tmp_path, monkeypatch):
    pipeline, cache = latent_pipeline(VQModel), tmp_path / "cache"
    latents(pipeline, photos, cache)
    first = contents(cache)
    latents(pipeline, photos, tmp_path / "again")
    assert contents(tmp_path / "again") == first
    shutil.copytree(photos, tmp_path / "elsewhere", copy_function=shutil.copyfile)  # other dates
    (tmp_path / "elsewhere/00.png").rename(tmp_path / "elsewhere/0.png")
    with monkeypatch.context() as patch:
        patch.setattr(VQModel, "encode", lambda *a: pytest.fail("encoded again"))
        latents(pipeline, tmp_path / "elsewhere", cache)
    assert contents(cache) == first

    def folders():
        return len(list(cache.glob("latents-*")))

    latents(pipeline, photos, cache, decoder=Decoder(16, interpolation="bicubic"))
    latents(pipeline, photos, cache, flip=False)
    latents(pipeline, photos, cache, dtype=torch.float16)
    assert folders() == 4
    pipeline.vqvae.register_to_config(scaling_factor=0.5)
    latents(pipeline, photos, cache)
    assert folders() == 5
    latents(latent_pipeline(VQModel), photos, cache)  # other weights
    Image.new("RGB", (16, 16)).save(photos / "00.png")
    latents(pipeline, photos, cache)
    assert folders() == 7


def test_half_precision_halves_the_size(photos, tmp_path):
    pipeline = latent_pipeline(AutoencoderKL)
    full, half = (latents(pipeline, photos, tmp_path / str(d), dtype=d) for d in (torch.float32, torch.float16))
    assert half.latents.layout.row_nbytes * 2 == full.latents.layout.row_nbytes == 2 * 2 * 3 * 8 * 8 * 4
    torch.testing.assert_close(half.moments(2, True), full.moments(2, True), atol=1e-3, rtol=1e-3)


def pictures():
    images = np.random.default_rng(0).integers(0, 256, (6, 20, 16, 3), dtype=np.uint8)
    return Arrays(images, texts=np.array([f"photo {'ab'[i % 2]}" for i in range(6)]))


def job_of(teacher, *more):
    recipe = load_recipe(None, [*QUICK, *more], values={"data": {"path": "pictures"}})
    return plan_job(recipe, teacher=teacher, data=pictures())


def losses(teacher, folder, *more):
    run_job(job_of(teacher, *more), folder, report=False)
    timing = ("seconds", "images_per_second")
    return [{k: v for k, v in line.items() if k not in timing} for line in RunFolder(folder).metrics()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["VQ", "KL", "text", "pixel"])
def test_loss_curves_with_and_without_agree(kind, tmp_path, teacher_folder):
    if kind == "text":
        pytest.importorskip("transformers")
        teacher = text_pipeline(tmp_path)
    elif kind == "pixel":
        from slimdpm import load_pipeline

        teacher = load_pipeline(teacher_folder)
    else:
        teacher = latent_pipeline(VQModel if kind == "VQ" else AutoencoderKL)
    kept, anew = losses(teacher, tmp_path / "kept"), losses(teacher, tmp_path / "anew", "data.cache=false")
    assert len(kept) == 4
    if kind == "pixel":
        assert kept == anew
    for one, two in zip(kept, anew, strict=True):  # of KL too: its draws follow from the step, not from the encoder
        assert one == pytest.approx(two, rel=1e-4)
    assert contents(tmp_path / "anew/cache") == {}


@pytest.mark.slow
def test_training_from_the_cache_leaves_encoders_where_they_are(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    teacher, shared = text_pipeline(tmp_path), f"data.cache={tmp_path / 'shared'}"
    losses(teacher, tmp_path / "first", shared)
    before = contents(tmp_path / "shared")
    assert {file.parent.name.split("-")[0] for file in (tmp_path / "shared").rglob("*.safetensors")} == {
        "latents",
        "text",
    }
    again = job_of(teacher, shared, "train.seed=1", "train.batch_size=2")  # another run, the same cache
    run = RunFolder(tmp_path / "second")
    run.open(again.recipe)
    for module in (AutoencoderKL, type(teacher.text_encoder)):
        monkeypatch.setattr(module, "to", lambda *a: pytest.fail("moved"))
    monkeypatch.setattr(AutoencoderKL, "encode", lambda *a: pytest.fail("encoded"))
    trainer = new_trainer(again, run, make_accelerator(again.recipe, run))
    monkeypatch.setattr(type(teacher.text_encoder), "forward", lambda *a, **k: pytest.fail("encoded"))
    trainer.train()
    run.close()
    assert trainer.state.step == 4 and contents(tmp_path / "shared") == before


def test_text_is_kept_as_the_pipeline_encodes_it(tmp_path):
    pytest.importorskip("transformers")
    teacher = text_pipeline(tmp_path)
    job = job_of(teacher)
    run = RunFolder(tmp_path / "run")
    run.open(job.recipe)
    conditioning = new_trainer(job, run, make_accelerator(job.recipe, run)).shell.conditioning
    run.close()
    assert conditioning.modules == [] and conditioning.embeddings.know(["", "photo a", "photo b"])
    found = conditioning.training_inputs({"conditions": ["photo b", "photo a"]}, torch.tensor([False, True]))
    with torch.no_grad():
        expected = teacher.encode_prompt(["photo b", ""], "cpu", 1, False)[0]
    torch.testing.assert_close(found["encoder_hidden_states"], expected)


@pytest.mark.slow
def test_a_resumed_run_goes_on_from_its_cache(tmp_path):
    teacher = latent_pipeline(AutoencoderKL)
    whole = losses(teacher, tmp_path / "whole")
    losses(teacher, tmp_path / "parts", "train.steps=2")
    assert losses(teacher, tmp_path / "parts") == whole


@pytest.mark.slow
def test_a_cache_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SlimdpmError, match=r"data.cache: the folder .*file cannot be made: File exists"):
        losses(latent_pipeline(VQModel), tmp_path / "run", f"data.cache={tmp_path / 'file'}")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_no_cache_on_the_command_line(tmp_path, photos):
    latent_pipeline(VQModel).save_pretrained(tmp_path / "teacher")
    sets = [part for s in QUICK if "flip" not in s for part in ("--set", s)]
    arguments = ["slim", str(tmp_path / "teacher"), str(photos), "-o", str(tmp_path / "run"), *sets]
    done = CliRunner().invoke(app, [*arguments, "--no-cache"], catch_exceptions=False)
    assert "will be kept in" not in done.output and not list((tmp_path / "run").rglob("latents-*"))
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)  # the same run: what is kept is of no account
    assert "latents of 20 images: 0.0 MB will be kept in" in done.output
    assert "1 of 20 images cannot be read and are skipped: 07.png" in done.output
    weights = load_file(tmp_path / "run/checkpoints/step-00000004/student.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())

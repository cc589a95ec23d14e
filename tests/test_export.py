"""Pipelines that leave PyTorch: graphs against networks, the runner against `sample_images`."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import onnx
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, VQModel
from diffusers.models.attention_processor import Attention
from helpers import AUTOENCODER, CLASSES, NAMES, TINY, TINY_CONDITION, text_pipeline, tiny_tokenizer, xl_pipeline
from onnx import numpy_helper
from PIL import Image
from typer.testing import CliRunner

from slimdpm import ClassConditionalLDMPipeline, Request, SlimdpmError, SpectralUNet2DModel, sample_images
from slimdpm.cli.main import app
from slimdpm.export import runner, storage
from slimdpm.export.checks import check_graph
from slimdpm.export.folder import Samplers, export_pipeline, sampler_tables
from slimdpm.export.graphs import graphs_of
from slimdpm.export.storage import shrink
from slimdpm.export.web.site import _copied
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.pipelines.sampling import make_scheduler
from slimdpm.pipelines.shell import network_of, shell_of

pytestmark = pytest.mark.usefixtures("one_torchlib")
SMALL = {**TINY, "block_out_channels": (8, 8), "down_block_types": ("DownBlock2D",) * 2}
SMALL |= {"up_block_types": ("UpBlock2D",) * 2, "add_attention": False}
# What conditions a network is in each of its layers, and an export takes seconds for each: one resolution is enough.
FLAT = {"sample_size": 8, "block_out_channels": (8,), "mid_block_type": None}
FLAT |= {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
FLAT_AUTOENCODER = {"block_out_channels": (8,), "down_block_types": ("DownEncoderBlock2D",)}
FLAT_AUTOENCODER |= {"up_block_types": ("UpDecoderBlock2D",)}


def test_words_are_clips(tmp_path):
    from slimdpm.export.folder import _words_of

    tokenizer = tiny_tokenizer(tmp_path)
    (tmp_path / "tokens.json").write_text(json.dumps(_words_of(tokenizer)))
    words = runner.Words(tmp_path / "tokens.json")
    for text in ("a dress", "Two  Cats' 3d é_x!?", "it's <|endoftext|> ok", "", "x" * 40, "ça 日本\n12"):
        wanted = tokenizer(text, padding="max_length", truncation=True, max_length=12).input_ids
        assert words(text).tolist() == wanted, text


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A gated student of three classes, in the latents of an autoencoder."""
    torch.manual_seed(2)
    unet = SpectralUNet2DModel(**{**SMALL, "sample_size": 8}, num_class_embeds=4)
    pipeline = ClassConditionalLDMPipeline(unet, DDIMScheduler(), VQModel(**AUTOENCODER), null_class=3, id2label=NAMES)
    pipeline.save_pretrained(folder := tmp_path_factory.mktemp("class"))
    return folder


@pytest.fixture(scope="module")
def exported(saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    (folder.parent / ".onnx.tmp-4000000").mkdir()  # what a killed export has left
    export_pipeline(str(saved), folder, samplers=Samplers((None, "ddpm"), (3,)))
    assert [path.name for path in folder.parent.iterdir()] == ["onnx"]
    return folder


def images(folder, output, *words):
    assert runner.main(["-n", "3", "--seed", "5", "-o", str(output), *words], folder) == 0
    return np.stack([np.asarray(Image.open(output / f"{i:05d}.png")) for i in range(3)])


def sampled(folder, output, *words):
    """The same by the command, in three steps."""
    words = ["sample", str(folder), "-n", "3", "--seed", "5", "--steps", "3", "-o", str(output), *words]
    CliRunner().invoke(app, words, catch_exceptions=False)
    return np.stack([np.asarray(Image.open(output / f"{i:05d}.png")) for i in range(3)])


def mean_difference(first, second):
    return np.abs(first.astype(int) - second).mean()


@pytest.mark.slow
def test_the_same_seed_makes_the_same_images(saved, exported, tmp_path):
    pipeline, request = load_pipeline(saved), Request(classes=[CLASSES[2], 0], guidance=2)
    for scheduler in ("ddim", "ddpm"):
        words = ("--scheduler", scheduler, "--class", CLASSES[2], "--class", "0", "--guidance", "2")
        made = images(exported, tmp_path / scheduler, *words)
        wanted = sample_images(pipeline, 3, steps=3, scheduler=scheduler, seed=5, request=request)
        assert mean_difference(made, wanted) <= 1 / 3 and wanted.std() > 20


@pytest.mark.slow
def test_images_of_another_size_are_those_of_the_sample_command(saved, exported, tmp_path, capsys):
    """From graphs that take any size, and from those of one."""

    size = ("--size", "24x16")
    words = ["export", str(saved), "-o", str(tmp_path / "onnx"), "--steps", "3", "--scheduler", "ddim", *size]
    CliRunner().invoke(app, words, catch_exceptions=False)
    wanted = sampled(saved, tmp_path / "wanted", *size)
    for made in images(tmp_path / "onnx", tmp_path / "one"), images(exported, tmp_path / "any", *size):
        assert made.shape == (3, 24, 16, 3) and mean_difference(made, wanted) <= 1 / 3 and wanted.std() > 20
    assert json.loads((tmp_path / "onnx/unet/config.json").read_text())["sample_size"] == [12, 8]
    for folder, size, message in [
        (tmp_path / "onnx", "16", "this folder makes images of 24x16 alone: leave --size out"),
        (exported, "20x18", "this folder makes images whose sides are multiples of 4, from 8 to 8192"),
        (exported, "4", "this folder makes images whose sides are multiples of 4, from 8 to 8192"),
    ]:
        assert runner.main(["--size", size, "-o", str(tmp_path / "none")], folder) == 2
        assert capsys.readouterr().err == f"\rerror: {message}\n" and not (tmp_path / "none").exists()
    with pytest.raises(SlimdpmError, match="holds samples of another network or of other settings"):
        CliRunner().invoke(app, ["sample", str(saved), "-o", str(tmp_path / "wanted")], catch_exceptions=False)
    for name in ("export", "sample"):
        words = [name, str(saved), "-o", str(tmp_path / "out"), "--size", "18x16"]
        with pytest.raises(SlimdpmError, match="images of 18x16 do not fit: .*; set --size to 16 or 20x16"):
            CliRunner().invoke(app, words, catch_exceptions=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_text_pipeline_through_openvino(tmp_path):
    torch.manual_seed(0)
    pipeline = text_pipeline(tmp_path, DDPMScheduler(clip_sample=False))
    pipeline.register_modules(unet=type(pipeline.unet)(**{**TINY_CONDITION, **FLAT}))
    pipeline.save_pretrained(tmp_path / "saved")
    export_pipeline(str(tmp_path / "saved"), tmp_path / "openvino", to="openvino", samplers=Samplers(("dpm++",), (3,)))
    assert {f.name for f in (tmp_path / "openvino").iterdir() if f.is_dir()} == {
        "unet", "vae_decoder", "vae_encoder", "text_encoder", "tokenizer", "scheduler"
    }  # fmt: skip
    made = images(tmp_path / "openvino", tmp_path / "made", "--prompt", "a coat", "--negative-prompt", "ugly")
    request = Request(prompts=["a coat"], negative_prompt="ugly")
    wanted = sample_images(load_pipeline(tmp_path / "saved"), 3, steps=3, scheduler="dpm++", seed=5, request=request)
    assert mean_difference(made, wanted) <= 1 / 3 and wanted.std() > 20


@pytest.mark.slow
def test_xl_has_two_encoders_sizes_and_a_null_condition_of_zeros(tmp_path):
    torch.manual_seed(0)
    pipeline = xl_pipeline(tmp_path)
    padded = tiny_tokenizer(tmp_path)
    padded.pad_token = "b</w>"  # in this XL's two tokenizers differ
    unet = type(pipeline.unet).from_config({**pipeline.unet.config, **FLAT})
    vae = AutoencoderKL(**{**AUTOENCODER, **FLAT_AUTOENCODER, "latent_channels": 4})
    pipeline.register_modules(unet=unet, vae=vae, tokenizer_2=padded)
    pipeline.save_pretrained(tmp_path / "saved")
    export_pipeline(str(tmp_path / "saved"), tmp_path / "onnx", samplers=Samplers(("dpm++",), (3,)))
    saved, made = load_pipeline(tmp_path / "saved"), []
    for negative in (None, "ugly"):
        words = ("--negative-prompt", negative) if negative else ()
        made.append(images(tmp_path / "onnx", tmp_path / str(negative), "--prompt", "a coat", *words))
        request = Request(prompts=["a coat"], negative_prompt=negative)
        wanted = sample_images(saved, 3, steps=3, scheduler="dpm++", seed=5, request=request)
        assert mean_difference(made[-1], wanted) <= 1 / 3 and wanted.std() > 20
    assert (made[0] != made[1]).any()
    words = ("--prompt", "a coat", "--size", "12x20")
    wanted = sampled(tmp_path / "saved", tmp_path / "wanted", *words, "--scheduler", "dpm++")
    assert mean_difference(images(tmp_path / "onnx", tmp_path / "larger", *words), wanted) <= 1 / 3
    graphs = {part: onnx.load(tmp_path / "onnx" / part / "model.onnx").graph.node for part in ("unet", "text_encoder")}
    kinds = {part: Counter(node.op_type for node in nodes) for part, nodes in graphs.items()}
    attentions = sum(isinstance(module, Attention) for module in unet.modules())
    assert kinds["unet"]["MultiHeadAttention"] == attentions > 0 and not kinds["unet"]["Softmax"]
    assert kinds["text_encoder"]["Softmax"] and not kinds["text_encoder"]["MultiHeadAttention"]  # sees what came before
    with pytest.raises(SlimdpmError, match="the page knows one text encoder"):
        _copied(tmp_path / "onnx", tmp_path / "site")


@pytest.mark.slow
def test_the_folder_runs_without_torch_and_without_slimdpm(exported, tmp_path):
    blocked = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(['torch', 'slimdpm', 'diffusers', 'transformers'])); "
    )
    words = f"sys.argv = ['generate.py', '-n', '2', '-o', {str(tmp_path / 'out')!r}]; "
    run = f"runpy.run_path({str(exported / 'generate.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", blocked + words + run], capture_output=True, text=True)
    assert done.returncode == 0 and "2 images in" in done.stdout, done.stderr
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["00000.png", "00001.png"]


def changed(folder, **values):
    file = folder / "slimdpm.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def renamed(name):
    def damage(folder):
        manifest = json.loads((folder / "slimdpm.json").read_text())
        changed(folder, unet=name, files={**manifest["files"], name: manifest["files"]["unet/model.onnx"]})

    return damage


def truncated(folder):
    (folder / "unet" / "model.onnx").write_bytes((folder / "unet" / "model.onnx").read_bytes()[:-7])


def swapped(folder):
    file = folder / "unet" / "model.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def resealed(folder, name, text):
    """A file with another content and the right digest: someone lies on purpose."""
    import hashlib

    (folder / name).write_bytes(text)
    files = json.loads((folder / "slimdpm.json").read_text())["files"]
    files[name] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    changed(folder, files=files)


def nan(folder):
    model = onnx.load(folder / "unet" / "model.onnx")
    weights = max((t for t in model.graph.initializer if t.data_type == 1), key=lambda t: np.prod(t.dims))
    weights.CopyFrom(numpy_helper.from_array(np.full(weights.dims, np.nan, np.float32), weights.name))
    resealed(folder, "unet/model.onnx", model.SerializeToString())


def table(**values):
    def damage(folder):
        tables = json.loads((folder / "sampler.json").read_text())
        tables["schedulers"]["ddim"]["3"].update(values)
        resealed(folder, "sampler.json", json.dumps(tables).encode())

    return damage


ROW = ("t", "scale", "alpha", "sigma", "x", "e", "n")
DAMAGES = {
    "no manifest": (lambda folder: (folder / "slimdpm.json").unlink(), "slimdpm.json is missing"),
    "no JSON": (lambda folder: (folder / "slimdpm.json").write_text("{" * 5000), "cannot be read"),
    "another format": (lambda folder: changed(folder, format=9), "another format"),
    "missing": (lambda folder: (folder / "unet" / "model.onnx").unlink(), "model.onnx is missing"),
    "cut": (truncated, "model.onnx is damaged"),
    "swapped": (swapped, "its content is not what was exported"),
    "upward": (renamed("../model.onnx"), "outside it"),
    "absolute": (renamed("/etc/passwd"), "outside it"),
    "upward text": (lambda folder: changed(folder, text_encoder="../model.onnx"), "model.onnx is missing"),
    "no name": (lambda folder: changed(folder, decoder=["a", "b"]), "['a', 'b'] is missing"),
    "no condition": (lambda folder: changed(folder, condition=[1]), "condition is '[1]'"),
    "text of nothing": (lambda folder: changed(folder, condition={"kind": "text", "guidance": 1}), "give --prompt"),
    "huge": (lambda folder: changed(folder, shape=[3, 2**40, 8]), "shape 1 is"),
    "another shape": (lambda folder: changed(folder, shape=[3, 9, 8]), "do not fit"),
    "no graph": (lambda folder: resealed(folder, "unet/model.onnx", b"nothing"), "cannot be loaded"),
    "nan": (nan, "not finite"),
    "no table": (lambda folder: resealed(folder, "sampler.json", b"[]"), "no scheduler 'ddim'"),
    "infinite": (table(start=float("inf")), "start is"),
    "of another kind": (table(memory="code"), "does not know"),
    "looks back": (
        table(steps=[dict.fromkeys(("t", "scale", "alpha", "sigma", "x", "e", "n"), 1) | {"m": {"4": 1}}]),
        "",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_folder_is_one_line(exported, tmp_path, capsys, what):
    damage, message = DAMAGES[what]
    damage(folder := shutil.copytree(exported, tmp_path / "copy"))
    capsys.readouterr()
    assert runner.main(["-o", str(tmp_path / "out")], folder) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: ") and message in told and "\n" not in told and len(told) <= 510
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_is_asked_wrongly_is_one_line(exported, tmp_path, capsys):
    for words, message in (
        (["--class", "hat"], "no class 'hat'; the classes are boots, coat, dress"),
        (["--prompt", "a hat"], "takes a class, not a prompt"),
        (["--steps", "5"], "no 5 steps of ddim in this folder; there are 3"),
        (["--scheduler", "euler"], "there are ddim, ddpm"),
    ):
        assert runner.main([*words, "-o", str(tmp_path / "out")], exported) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_graph_that_disagrees_leaves_no_folder(saved, exported, tmp_path, monkeypatch):
    nan(shutil.copytree(exported, tmp_path / "copy"))
    other = tmp_path / "copy" / "unet" / "model.onnx"
    monkeypatch.setattr("slimdpm.export.folder.to_onnx", lambda graph, file, **_: shutil.copyfile(other, file))
    monkeypatch.setattr("slimdpm.export.folder.graphs_of", lambda *given: islice(graphs_of(*given), 1))
    with pytest.raises(SlimdpmError, match="the exported unet disagrees with PyTorch"):
        export_pipeline(str(saved), tmp_path / "out" / "onnx", samplers=Samplers(("ddim",), (3,)))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_fewer_bits_are_smaller_and_near(exported, saved, tmp_path, monkeypatch):
    pipeline = load_pipeline(saved)
    graph = next(graphs_of(network_of(pipeline), shell_of(pipeline)))
    graph.module.eval()
    before, off = (exported / "unet" / "model.onnx").stat().st_size, []
    for weights in ("float16", "int8"):
        shutil.copyfile(exported / "unet" / "model.onnx", file := tmp_path / f"{weights}.onnx")
        shrink(file, weights)
        off.append(check_graph(graph, file, weights))
        assert file.stat().st_size < before
    whole = onnx.load(exported / "unet" / "model.onnx")
    onnx.save(whole, large := tmp_path / "large.onnx", save_as_external_data=True, location="large.onnx.data")
    shrink(large, "float16")
    assert not (tmp_path / "large.onnx.data").exists() and check_graph(graph, large, "float16") == off[0]
    monkeypatch.setattr(storage, "PROTOBUF", 1000)  # as if half of them had no room in one file
    shutil.copyfile(exported / "unet" / "model.onnx", large)
    shrink(large, "float16")
    assert (tmp_path / "large.onnx.data").exists() and check_graph(graph, large, "float16") == off[0]
    assert 0 < off[0] < 2e-3 and off[0] < off[1] < 0.1


@pytest.mark.slow
def test_the_command_writes_what_other_tools_load(saved, tmp_path):
    def export(*words):
        return CliRunner().invoke(app, ["export", str(saved), *words], catch_exceptions=False)

    export("--to", "diffusers", "--half", "-o", str(tmp_path / "half"))
    export("--to", "hub", "-o", str(tmp_path / "hub"))
    assert (tmp_path / "half" / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    assert list((tmp_path / "hub" / "unet").glob("*.py"))
    for words, message in (
        (["--to", "hub", "--steps", "4"], "belong to --to onnx, openvino and web"),
        (["--to", "diffusers", "--size", "32"], "belong to --to onnx, openvino and web"),
        (["--half", "--int8"], "--int8 goes with --to onnx"),
        (["--to", "openvino", "--portable"], "--portable belongs to --to onnx"),
        (["--steps", "four"], "--steps four: give numbers"),
        (["--to", "single-file", "-o", str(tmp_path / "x.safetensors")], "single files are written of"),
    ):
        with pytest.raises(SlimdpmError, match=message):
            export("-o", str(tmp_path / "out"), *words)


def test_two_samplers_of_one_class_keep_their_names(saved):
    shell = shell_of(load_pipeline(saved))
    own = make_scheduler(shell, "dpm++sde")
    tables = sampler_tables(replace(shell, scheduler=own), Samplers((None, "dpm++"), (3,)))
    assert list(tables) == ["dpm++sde", "dpm++"]
    assert [tables[name]["3"]["steps"][0]["draws"] for name in tables] == [True, False]


def test_refusals_come_before_the_work(saved, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(SlimdpmError, match="exists already"):
        export_pipeline(str(saved), tmp_path / "there")
    with pytest.raises(SlimdpmError, match="unknown scheduler"):
        export_pipeline(str(saved), tmp_path / "out", samplers=Samplers(("nothing",), (4,)))
    with pytest.raises(SlimdpmError, match="--steps: .* cannot take"):
        export_pipeline(str(saved), tmp_path / "out", samplers=Samplers((None,), (5000,)))
    assert not (tmp_path / "out").exists()

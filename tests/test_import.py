"""What is no original checkpoint, and what would run code: one line, exit code 2, nothing written. Single files."""

import json
import os
import pickle
import re
import shutil
import sys
import types
import zipfile

import numpy as np
import pytest
import reference_ldm as reference
import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from helpers import Forked, command
from safetensors.torch import load_file, save_file
from test_cli import invoke
from test_originals import YAMLS, original, reduced

from slimdpm import load_pipeline
from slimdpm.originals import convert_checkpoint, import_checkpoint, import_single_file
from slimdpm.originals.reading import read_tensors
from slimdpm.pipelines import ClassConditionalLDMPipeline
from slimdpm.pipelines.shell import shell_of
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.shared_work import claim_new

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ffhq(tmp_path_factory):
    """A checkpoint and its YAML that are whole."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ffhq")
    values = reduced("ffhq")
    values["model"]["params"]["unet_config"]["params"].update(channel_mult=[1, 2], num_res_blocks=1)
    original(values, folder)
    return folder


class Runs:
    """Unpickling it in the ordinary way writes a file."""

    def __init__(self, file):
        self.command = f"touch {file}"

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("saving", [{}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}])
def test_a_malicious_checkpoint_runs_nothing(ffhq, tmp_path, saving):
    torch.save({"state_dict": {}, "callbacks": Runs(tmp_path / "ran")}, tmp_path / "evil.ckpt", **saving)
    with pytest.raises(SlimdpmError, match="nothing of it was run") as error:
        import_checkpoint(tmp_path / "evil.ckpt", ffhq / "config.yaml", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["evil.ckpt"]
    torch.load(tmp_path / "evil.ckpt", weights_only=False)  # it would have
    assert (tmp_path / "ran").exists()


def test_a_bare_pickle_runs_nothing(tmp_path):
    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps(Runs(tmp_path / "ran"), 2))
    with pytest.raises(SlimdpmError, match=r"asks for more than tensors \(posix.system\); nothing of it was run"):
        read_tensors(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def lightning(monkeypatch):
    """A package that is installed while a checkpoint is saved. Reading the checkpoint must not look for it."""
    names = ["pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"]
    modules = [types.ModuleType(name) for name in names]

    class ModelCheckpoint:
        def __setstate__(self, state):
            raise AssertionError("this was called")

    def attack(*arguments):
        raise AssertionError("this was called")

    for thing in (ModelCheckpoint, attack):
        thing.__module__, thing.__qualname__ = names[-1], thing.__name__
        setattr(modules[-1], thing.__name__, thing)
    for module in modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return modules[-1]


class Calls:
    """Unpickling it in the ordinary way calls a function."""

    def __init__(self, function):
        self.function = function

    def __reduce__(self):
        return self.function, ("argument",)


@pytest.mark.parametrize("installed", [True, False])
def test_what_a_training_leaves_behind_is_neither_imported_nor_called(
    ffhq, tmp_path, lightning, monkeypatch, installed
):
    """As in the published files: ModelCheckpoint as a key, scores, paths; and a call in Lightning's name."""
    state = read_tensors(ffhq / "model.ckpt")
    callback = lightning.ModelCheckpoint()
    callback.dirpath = tmp_path  # a PosixPath
    callbacks = {lightning.ModelCheckpoint: {"best_model_score": np.float64(0.5), "callback": callback}}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
    extra = {"callbacks": callbacks, "optimizer_states": [optimizer], "hparams": Calls(lightning.attack)}
    torch.save({"state_dict": state, **extra}, tmp_path / "model.ckpt")
    if installed:
        with pytest.raises(AssertionError, match="this was called"):
            torch.load(tmp_path / "model.ckpt", weights_only=False)
    else:
        for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
            monkeypatch.delitem(sys.modules, name)
    before = torch.serialization.get_safe_globals()
    read = read_tensors(tmp_path / "model.ckpt")
    assert read.keys() == state.keys() and all(torch.equal(read[name], state[name]) for name in state)
    assert ("pytorch_lightning" in sys.modules) == installed
    assert set(torch.serialization.get_safe_globals()) == set(before)  # the stand-ins are gone again


def test_an_object_in_place_of_a_weight(ffhq, tmp_path):
    torch.save({"state_dict": {"betas": np.float64(1)}}, tmp_path / "model.ckpt")
    with pytest.raises(SlimdpmError, match="betas is no tensor"):
        read_tensors(tmp_path / "model.ckpt")


def test_safetensors_and_files_before_pytorch_1_6_are_read_too(ffhq, tmp_path):
    state = read_tensors(ffhq / "model.ckpt")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    torch.save({"state_dict": state}, tmp_path / "model.ckpt", _use_new_zipfile_serialization=False)
    expected = convert_checkpoint(ffhq / "model.ckpt", ffhq / "config.yaml").unet.state_dict()
    for file in ("model.safetensors", "model.ckpt"):
        found = convert_checkpoint(tmp_path / file, ffhq / "config.yaml").unet.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def cut(file):
    file.write_bytes(file.read_bytes()[:-20_000])


def zip_up(file):
    data = file.read_bytes()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model.ckpt", data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.unlink(), "model.ckpt does not exist"),
        (lambda file: file.write_text("hello"), "no checkpoint of PyTorch"),
        (lambda file: file.write_bytes(b""), "no checkpoint of PyTorch"),
        (cut, "or it is cut short"),
        (zip_up, "no checkpoint of PyTorch"),
        (lambda file: torch.save(torch.ones(3), file), "holds no state_dict"),
        (lambda file: torch.save({"state_dict": {}}, file), "holds no state_dict"),
    ],
)
def test_what_is_no_checkpoint_is_named(ffhq, tmp_path, change, words):
    shutil.copy(ffhq / "model.ckpt", tmp_path)
    change(tmp_path / "model.ckpt")
    with pytest.raises(SlimdpmError, match=words) as error:
        import_checkpoint(tmp_path / "model.ckpt", ffhq / "config.yaml", tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def rename(state):
    state["model.diffusion_model.extra.weight"] = state.pop("first_stage_model.quant_conv.bias")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            rename,
            "1 missing: first_stage_model.quant_conv.bias; 1 unknown: model.diffusion_model.extra.weight",
        ),
        (
            lambda state: state.update({"first_stage_model.quant_conv.bias": torch.zeros(5)}),
            r"1 of another shape: first_stage_model.quant_conv.bias \(5,\) for \(3,\)",
        ),
        (lambda state: state.pop("model_ema.diffusion_modelout2bias"), "1 missing: model_ema.diffusion_modelout2bias"),
        (
            lambda state: state.pop("model_ema.diffusion_modelmiddle_block1qkvbias"),
            "1 missing: model_ema.diffusion_modelmiddle_block1qkvbias",
        ),
        (lambda state: state.update(logits=torch.zeros(1)), "1 unknown: logits"),
    ],
)
def test_weights_without_a_place_are_listed(ffhq, tmp_path, change, words):
    state = read_tensors(ffhq / "model.ckpt")
    change(state)
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    with pytest.raises(SlimdpmError, match=f"does not belong to .*config.yaml: {words}$"):
        import_checkpoint(tmp_path / "model.ckpt", ffhq / "config.yaml", tmp_path / "out")
    assert os.listdir(tmp_path) == ["model.ckpt"]


def test_what_only_training_needs_is_left_aside(ffhq, tmp_path):
    state = read_tensors(ffhq / "model.ckpt")
    for name in ("lvlb_weights", "first_stage_model.loss.discriminator.main.0.weight", "logvar"):
        state[name] = torch.zeros(1)
    torch.save(state, tmp_path / "model.ckpt")  # and without the training around it
    convert_checkpoint(tmp_path / "model.ckpt", ffhq / "config.yaml")


def test_a_checkpoint_of_another_architecture(ffhq, tmp_path):
    words = ("import", ffhq / "model.ckpt", "--config", YAMLS / "lsun_churches.yaml", "-o", tmp_path / "out")
    done = Forked(command(*words)).wait()
    assert done.code == 2 and done.out == "" and done.err.count("\n") == 1
    assert "does not belong to" in done.err and "missing: model_ema." in done.err and "more" in done.err
    assert os.listdir(tmp_path) == []


def edited(path, value):
    def edit(values):
        *parents, last = path.split(".")
        for name in parents:
            values = values[name]
        if value is None:
            del values[last]
        else:
            values[last] = value

    return edit


UNET = "model.params.unet_config.params"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edited("model", None), "it has no model.params"),
        (edited("model.params.unet_config", None), "model.params.unet_config is missing"),
        (edited(f"{UNET}.in_channels", None), f"{UNET}.in_channels is missing"),
        (edited(f"{UNET}.in_channels", "three"), "in_channels: input should be a valid integer, got 'three'"),
        (edited(f"{UNET}.dims", 3), "dims: input should be 2, got 3"),
        (edited(f"{UNET}.lora", 3), f"unknown key {UNET}.lora; known here: image_size, in_channels"),
        (edited(f"{UNET}.num_heads", 4), "either num_heads or num_head_channels"),
        (edited(f"{UNET}.num_head_channels", 7), "heads do not divide its channels"),
        (edited(f"{UNET}.model_channels", 40), "model_channels is 40, and not a multiple"),
        (edited(f"{UNET}.context_dim", 512), "attends to context_dim 512, the conditioning stage gives None"),
        (edited("model.target", "os.system"), "model.target is os.system; slimdpm imports LatentDiffusion"),
        (edited("model.params.first_stage_config.target", "x.Identity"), "first_stage_config.target is x.Identity"),
        (edited("model.params.first_stage_config.params.n_embed", None), "needs n_embed"),
        (edited("model.params.cond_stage_config", "__is_first_stage__"), "cond_stage_config"),
        (edited("model.params.parameterization", "x0"), "parameterization: input should be 'eps', got 'x0'"),
    ],
)
def test_a_yaml_of_something_else_is_named(ffhq, tmp_path, change, words):
    values = yaml.safe_load((ffhq / "config.yaml").read_text())
    change(values)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(SlimdpmError, match=words) as error:
        import_checkpoint(ffhq / "model.ckpt", tmp_path / "config.yaml", tmp_path / "out")
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == ["config.yaml"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: !!python/object/apply:os.system ['touch RAN']", "is refused: it asks for more than data"),
        ("model: !!python/name:os.system", "is refused: it asks for more than data"),
        ("model: [", "is no valid YAML (line 1)"),
        ("just text", "is no config of latent-diffusion"),
    ],
)
def test_a_yaml_that_is_no_data(ffhq, tmp_path, text, words):
    (tmp_path / "config.yaml").write_text(text.replace("RAN", str(tmp_path / "ran")))
    with pytest.raises(SlimdpmError, match=re.escape(words)) as error:
        import_checkpoint(ffhq / "model.ckpt", tmp_path / "config.yaml", tmp_path / "out")
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == ["config.yaml"]


def test_the_command_with_a_malicious_yaml(ffhq, tmp_path):
    (tmp_path / "config.yaml").write_text(f"model: !!python/object/apply:os.system ['touch {tmp_path}/ran']")
    words = ("import", ffhq / "model.ckpt", "--config", tmp_path / "config.yaml", "-o", tmp_path / "out")
    done = Forked(command(*words)).wait()
    assert done.code == 2 and "asks for more than data" in done.err and done.err.count("\n") == 1
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_an_output_that_exists_is_left_alone(ffhq, tmp_path):
    with pytest.raises(SlimdpmError, match="exists already"):
        import_checkpoint(ffhq / "model.ckpt", ffhq / "config.yaml", tmp_path)


def test_of_several_imports_at_once_one_works_and_the_others_say_so_at_once(ffhq, tmp_path):
    output = tmp_path / "new" / "out"
    for function in (import_checkpoint, import_single_file):
        with claim_new(output), pytest.raises(SlimdpmError, match="another process is writing .*out"):
            function(tmp_path / "none.ckpt", tmp_path / "none", output)
        assert not list(output.parent.iterdir())
    import_checkpoint(ffhq / "model.ckpt", ffhq / "config.yaml", output)
    assert [path.name for path in output.parent.iterdir()] == ["out"]


def test_the_command(ffhq, tmp_path):
    arguments = (ffhq / "model.ckpt", "--config", ffhq / "config.yaml")
    printed = invoke("import", *arguments, "-o", tmp_path / "averaged")
    assert "averaged: the averaged weights" in printed and "UNet2DModel of" in printed and "VQModel of" in printed
    assert "the trained weights" in invoke("import", *arguments, "-o", tmp_path / "trained", "--no-ema")
    weights = [
        load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors") for name in ("averaged", "trained")
    ]
    assert not torch.equal(weights[0]["conv_in.weight"], weights[1]["conv_in.weight"])


def test_a_class_conditional_checkpoint_becomes_our_pipeline(tmp_path):
    model, checkpoint, config = original(reduced("cin256-v2"), tmp_path)
    printed = invoke("import", checkpoint, "--config", config, "-o", tmp_path / "out")
    assert "1001 labels" in printed and "which has no averaged weights" in printed
    pipeline = load_pipeline(tmp_path / "out")
    assert isinstance(pipeline, ClassConditionalLDMPipeline)
    assert pipeline.config.null_class == 1000
    assert pipeline.unet.config.cross_attention_dim == 512
    assert pipeline.vqvae.config.num_vq_embeddings == 50
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"
    labels = torch.tensor([3, 1000])
    assert torch.equal(pipeline.class_embedder(labels), model.cond_stage_model(labels))


# Stable Diffusion

SD_UNET = {
    "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "attention_resolutions": [1],
    "num_res_blocks": 1, "channel_mult": [1, 2], "num_heads": 4, "use_spatial_transformer": True, "context_dim": 16,
}  # fmt: skip
SD_VAE = {
    "double_z": True, "z_channels": 4, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2],
    "num_res_blocks": 1, "attn_resolutions": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def single_file(tmp_path_factory):
    """A tiny Stable Diffusion v1 in its original layout, and a folder with its configs and tokenizer alone."""
    transformers = pytest.importorskip("transformers")
    from diffusers import StableDiffusionPipeline

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd")
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    clip = transformers.CLIPTextConfig(
        vocab_size=4, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    text_encoder = transformers.CLIPTextModel(clip)
    common = {"block_out_channels": (32, 64), "layers_per_block": 1}
    vae = AutoencoderKL(
        **common, latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        **common, cross_attention_dim=16, attention_head_dim=4, sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, DDIMScheduler(), None, None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder / "configs")
    for file in (folder / "configs").rglob("*.safetensors"):
        file.unlink()

    networks = {
        "model.diffusion_model.": reference.UNetModel(SD_UNET),
        "first_stage_model.": reference.FirstStage({"embed_dim": 4, "ddconfig": SD_VAE}),
        "cond_stage_model.transformer.": text_encoder,
    }
    state = {}
    for prefix, network in networks.items():
        for name, tensor in network.state_dict().items():
            text = prefix.startswith("cond") and not name.startswith("text_model.")
            state[prefix + ("text_model." if text else "") + name] = tensor.contiguous()
    save_file(state, folder / "sd.safetensors")
    return folder, networks


@torch.no_grad()
def test_a_single_file_of_stable_diffusion(single_file, tmp_path):
    folder, networks = single_file
    printed = invoke("import", folder / "sd.safetensors", "--config", folder / "configs", "-o", tmp_path / "out")
    assert "StableDiffusionPipeline, UNet2DConditionModel of" in printed
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out")
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([30]), torch.randn(1, 77, 16)
    expected = networks["model.diffusion_model."](x, t, context)
    torch.testing.assert_close(pipeline.unet(x, t, context).sample, expected, atol=1e-4, rtol=1e-4)
    expected = networks["first_stage_model."].decode(x)
    torch.testing.assert_close(pipeline.vae.decode(x).sample, expected, atol=1e-4, rtol=1e-4)
    tokens = torch.tensor([[0, 2, 3, 1]])
    expected = networks["cond_stage_model.transformer."].eval()(tokens)[0]
    torch.testing.assert_close(pipeline.text_encoder(tokens)[0], expected)


@pytest.mark.parametrize(("kind", "channels"), [("Inpaint", 9), ("InstructPix2Pix", 8)])
def test_a_single_file_of_a_network_that_sees_images(single_file, kind, channels, tmp_path):
    folder, _ = single_file
    shutil.copytree(folder / "configs", tmp_path / "configs")
    for file, key, value in (
        ("model_index.json", "_class_name", f"StableDiffusion{kind}Pipeline"),
        ("unet/config.json", "in_channels", channels),
    ):
        path = tmp_path / "configs" / file
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    state, name = load_file(folder / "sd.safetensors"), "model.diffusion_model.input_blocks.0.0.weight"
    state[name] = torch.cat([state[name], torch.randn(32, channels - 4, 3, 3)], dim=1)
    save_file(state, tmp_path / "sd.safetensors")
    import_single_file(tmp_path / "sd.safetensors", str(tmp_path / "configs"), tmp_path / "out")
    shell = shell_of(load_pipeline(tmp_path / "out"))
    assert shell.conditioning.extra == channels - 4 and shell.channels == 4
    assert torch.equal(DiffusionPipeline.from_pretrained(tmp_path / "out").unet.conv_in.weight, state[name])


def test_a_single_file_with_what_lightning_left_in_it(single_file, tmp_path, lightning):
    folder, _ = single_file
    state = load_file(folder / "sd.safetensors")
    torch.save({"state_dict": state, "callbacks": {lightning.ModelCheckpoint: 1}}, tmp_path / "sd.ckpt")
    pipeline = import_single_file(tmp_path / "sd.ckpt", str(folder / "configs"), tmp_path / "out")
    assert torch.equal(pipeline.unet.conv_in.weight, state["model.diffusion_model.input_blocks.0.0.weight"])


def test_single_files_that_cannot_be_read(single_file, ffhq, tmp_path):
    folder, _ = single_file
    state = load_file(folder / "sd.safetensors")
    save_file({"weight": torch.ones(1)}, tmp_path / "other.safetensors")
    save_file({k: v for k, v in state.items() if "text_model" not in k}, tmp_path / "no-text.safetensors")
    some = {k: v for k, v in state.items() if k != "model.diffusion_model.out.2.bias"}
    save_file(some, tmp_path / "one-missing.safetensors")
    some = {k: v for k, v in state.items() if not k.endswith("final_layer_norm.bias")}
    save_file(some, tmp_path / "one-missing-in-text.safetensors")
    torch.save({"state_dict": state, "callbacks": Runs(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    for file, config, words in [
        (
            folder / "sd.safetensors",
            "nobody/nothing",
            "nobody/nothing is no diffusers folder here, and the hub has not",
        ),
        (folder / "sd.safetensors", str(tmp_path), "is no diffusers folder here"),
        (tmp_path / "other.safetensors", str(folder / "configs"), "is no single file of Stable Diffusion"),
        (tmp_path / "no-text.safetensors", str(folder / "configs"), "cannot be read with the configs of"),
        (tmp_path / "one-missing.safetensors", str(folder / "configs"), "weights are missing"),
        (tmp_path / "one-missing-in-text.safetensors", str(folder / "configs"), "of the text_encoder are missing"),
        (tmp_path / "evil.ckpt", str(folder / "configs"), "nothing of it was run"),
    ]:
        with pytest.raises(SlimdpmError, match=words) as error:
            import_single_file(file, config, tmp_path / "out")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists() and not (tmp_path / "ran").exists()

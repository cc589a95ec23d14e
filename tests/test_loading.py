"""Folders of others: each layout that diffusers loads, and nothing of a folder is imported."""

import json
import shutil
import sys

import pytest
import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel, VQModel
from helpers import TINY, latent_pipeline, text_pipeline, xl_pipeline

from slimdpm import load_pipeline
from slimdpm.pipelines.loading import checked_index, locate
from slimdpm.pipelines.teacher import load_teacher
from slimdpm.system.errors import SlimdpmError


def edit(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def folder(tmp_path, teacher_folder):
    return shutil.copytree(teacher_folder, tmp_path / "teacher")


def test_unet_and_scheduler_may_lie_beside_the_index(folder):
    """As in google/ddpm-cifar10-32 and its kin."""
    weight = load_pipeline(folder).unet.conv_in.weight
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            file.rename(folder / file.name)
        (folder / part).rmdir()
    for weights in (True, False):
        teacher = load_teacher(folder, weights=weights)
        assert tuple(teacher.unet.config.block_out_channels) == (16, 32)
    assert torch.equal(load_pipeline(folder).unet.conv_in.weight, weight)


def test_names_of_old_versions(tmp_path, folder):
    latent_pipeline(VQModel).save_pretrained(tmp_path / "latent")
    edit(tmp_path / "latent/model_index.json", _class_name="LatentDiffusionUncondPipeline")
    assert type(load_pipeline(tmp_path / "latent")).__name__ == "LDMPipeline"
    edit(folder / "model_index.json", unet=["diffusers", "UNetUnconditionalModel"])
    edit(folder / "unet/config.json", _class_name="UNetUnconditionalModel")
    assert type(load_pipeline(folder).unet) is UNet2DModel


def test_weights_that_are_a_pickle_alone(folder):
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(SlimdpmError, match="a pickle, .*bin, which may run code.*save_pretrained"):
        load_pipeline(folder)


@pytest.fixture
def trap(folder, tmp_path, monkeypatch):
    """A module that leaves a file behind when it is imported, wherever a loader might look for it."""
    proof = tmp_path / "proof"
    code = f"open({str(proof)!r}, 'w').close()\nclass Evil:\n    from_pretrained = classmethod(lambda *a, **k: None)\n"
    names = ("evilmod.py", "None.py", "pipeline.py", "scheduler/evilmod.py", "scheduler/diffusers.py")
    for name in names:
        (folder / name).write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    assert not proof.exists()
    assert "evilmod" not in sys.modules


@pytest.mark.parametrize(
    "entry",
    [
        {"scheduler": ["evilmod", "Evil"]},
        {"scheduler": ["diffusers", "DDPMScheduler"]},  # its folder holds code
        {"scheduler": ["diffusers", "UNet2DModel"]},
        {"feature_extractor": ["evilmod", "Evil"]},
        {"unet": [["evilmod"], {}]},
        {"unet": ["diffusers"]},
        {"_class_name": ["evilmod", "Evil"]},
        {"_class_name": {"evilmod": "Evil"}},
        {"_class_name": "ScoreSdeVePipeline"},
        {"custom_pipeline": "evilmod"},
    ],
)
def test_nothing_that_an_index_names_is_imported(trap, entry):
    edit(trap / "model_index.json", **entry)
    for weights in (True, False):
        with pytest.raises(SlimdpmError):
            load_teacher(trap, weights=weights)


def test_files_with_code_that_nothing_names_stay_unread(trap):
    (trap / "scheduler/diffusers.py").unlink()
    assert load_teacher(trap).has_scales
    assert checked_index(trap).parts.keys() == {"unet", "scheduler"}


@pytest.mark.parametrize("part", ["unet/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json"])
@pytest.mark.parametrize("key", ["auto_map", "quantization_config", "base_model_name_or_path"])
def test_configs_that_ask_for_code(tmp_path, part, key):
    text_pipeline(tmp_path).save_pretrained(tmp_path / "teacher")
    edit(tmp_path / "teacher" / part, **{key: {"AutoModel": "evilmod.Evil"}})
    with pytest.raises(SlimdpmError, match=f"asks for more than data: {key}"):
        load_teacher(tmp_path / "teacher", weights=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("unet/config.json", {"layers_per_block": 10**6}),
        ("unet/config.json", {"block_out_channels": [8] * 5000}),
        ("unet/config.json", {"norm_num_groups": 0}),
        ("unet/config.json", {"act_fn": ["silu"]}),
        ("unet/config.json", {"sample_size": "61616161"}),
        ("unet/config.json", {"in_channels": 10**29}),
        ("unet/config.json", {"_class_name": "AutoencoderKL"}),
        ("vqvae/config.json", {"latent_channels": 5}),
        ("vqvae/config.json", {"layers_per_block": 10**9}),
        ("vqvae/config.json", {"block_out_channels": "wide"}),
        ("vqvae/config.json", {"in_channels": 1}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}),
        ("scheduler/scheduler_config.json", {"beta_schedule": {}}),
    ],
)
def test_wild_values_are_one_line_with_and_without_weights(tmp_path, file, values, monkeypatch):
    monkeypatch.setattr("slimdpm.method.networks._MODULES", 1500)  # of the true bound's are built within seconds
    latent_pipeline(AutoencoderKL).save_pretrained(tmp_path)
    edit(tmp_path / file, **values)
    for weights in (False, True):
        with pytest.raises(SlimdpmError) as error:
            load_teacher(tmp_path, weights=weights)
        assert "\n" not in str(error.value) and len(str(error.value)) <= 500


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_an_outline_is_in_single_precision_whatever_a_text_encoder_was(key, tmp_path):
    xl_pipeline(tmp_path).save_pretrained(tmp_path / "teacher")
    edit(tmp_path / "teacher" / "text_encoder_2" / "config.json", **{"dtype": None, key: "float16"})
    load_teacher(tmp_path / "teacher", weights=False)


def test_a_tokenizer_that_cannot_make_a_batch(tmp_path):
    text_pipeline(tmp_path).save_pretrained(tmp_path / "teacher")
    edit(tmp_path / "teacher" / "tokenizer" / "tokenizer_config.json", model_max_length=0)
    with pytest.raises(SlimdpmError, match="what encodes the conditions of .* does not work"):
        load_teacher(tmp_path / "teacher")


def test_a_hub_repository_of_half_precision_alone_is_asked_for_it(folder, monkeypatch):
    asked = []

    def download(hub_id, *, use_safetensors, variant=None):  # as diffusers refuses it
        asked.append(variant)
        if variant is None:
            raise OSError("Could not find the necessary `safetensors` weights in {...} (variant=None)")
        return str(folder)

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    assert locate("somebody/half") == folder and asked == [None, "fp16"]


def test_weights_that_are_gone_are_told_once(tmp_path, capfd):
    latent_pipeline(AutoencoderKL).save_pretrained(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(SlimdpmError, match="unet cannot be loaded"):
        load_teacher(tmp_path)
    assert capfd.readouterr().err == ""


def test_a_folder_without_a_part_that_its_pipeline_needs(tmp_path):
    DDPMPipeline(UNet2DModel(**TINY), DDPMScheduler()).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    for part in ("unet", "scheduler"):
        left = {key: value for key, value in index.items() if key != part}
        (tmp_path / "model_index.json").write_text(json.dumps(left))
        with pytest.raises(SlimdpmError):
            load_teacher(tmp_path)

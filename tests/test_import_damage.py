"""Damaged and hostile checkpoints, YAMLs and config folders: right weights or one line, and nothing is left behind."""

import io
import json
import os
import re
import shutil
import sys
import tarfile
import zipfile

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_originals import original, reduced

from slimdpm import load_pipeline
from slimdpm.originals import convert_checkpoint, import_checkpoint, import_single_file
from slimdpm.originals.importing import Parts
from slimdpm.originals.reading import read_tensors
from slimdpm.system.errors import SlimdpmError

WEIGHT = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small checkpoint and its YAML."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("whole")
    values = reduced("ffhq")
    params = values["model"]["params"]
    params["unet_config"]["params"].update(channel_mult=[1, 1], num_res_blocks=1, attention_resolutions=[2])
    params["first_stage_config"]["params"]["ddconfig"].update(ch_mult=[1, 1], num_res_blocks=1)
    original(values, folder)
    return folder


def rewritten(source, target, change=lambda name, data: data, compression=zipfile.ZIP_STORED):
    """The zip again with other contents, its checksums those of what is in it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def test_a_compressed_checkpoint_has_the_same_weights(whole, tmp_path):
    packed = rewritten(whole / "model.ckpt", tmp_path / "packed.ckpt", compression=zipfile.ZIP_DEFLATED)
    expected = convert_checkpoint(whole / "model.ckpt", whole / "config.yaml").unet.state_dict()
    found = convert_checkpoint(packed, whole / "config.yaml").unet.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_tensor_that_is_longer_than_its_record(whole, tmp_path, compression):
    file = rewritten(
        whole / "model.ckpt", tmp_path / "x.ckpt", lambda n, d: d[:-4] if n.endswith("data/0") else d, compression
    )
    with pytest.raises(SlimdpmError, match="not of the sizes of its records|is no checkpoint of PyTorch"):
        read_tensors(file)


def test_a_flipped_bit_in_a_tensor_is_found(whole, tmp_path):
    data = bytearray((whole / "model.ckpt").read_bytes())
    with zipfile.ZipFile(whole / "model.ckpt") as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    data[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    (tmp_path / "x.ckpt").write_bytes(data)
    with pytest.raises(SlimdpmError, match=f"is damaged: Bad CRC-32 for file '{largest.filename}'"):
        read_tensors(tmp_path / "x.ckpt")


def test_a_zip_that_would_fill_the_memory(whole, tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("model/data/0", "w") as record,
    ):
        for _ in range(70):
            record.write(bytes(2**20))
    with pytest.raises(SlimdpmError, match="would unpack to more than 20 times its size"):
        read_tensors(tmp_path / "bomb.ckpt")


def test_a_tar_is_not_unpacked(tmp_path):
    with tarfile.open(tmp_path / "old.ckpt", "w") as archive:
        pipe = tarfile.TarInfo("storages")
        pipe.type = tarfile.FIFOTYPE  # PyTorch would make it and wait for its writer
        archive.addfile(pipe)
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    with pytest.raises(SlimdpmError, match="is a tar"):
        read_tensors(tmp_path / "old.ckpt")


def test_what_is_no_file(whole, tmp_path):
    os.mkfifo(tmp_path / "pipe.ckpt")
    for name, words in [
        ("pipe.ckpt", "is no file"), (".", "is no file"), ("/dev/zero", "is no file"), ("none", "does not exist"),
        ("n" * 300, "cannot be read: File name too long"),
    ]:  # fmt: skip
        with pytest.raises(SlimdpmError, match=words):
            import_checkpoint(tmp_path / name, whole / "config.yaml", tmp_path / "out")
    for name, words in [("pipe.ckpt", "is no regular file"), (".", "is a folder"), ("n" * 300, "cannot be read")]:
        with pytest.raises(SlimdpmError, match=words):
            import_checkpoint(whole / "model.ckpt", tmp_path / name, tmp_path / "out")
    with pytest.raises(SlimdpmError, match="File name too long"):
        import_checkpoint(whole / "model.ckpt", whole / "config.yaml", tmp_path / ("n" * 300))
    assert os.listdir(tmp_path) == ["pipe.ckpt"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "holds numbers that are not finite"),
        (float("inf"), "holds numbers that are not finite"),
        (torch.bool, "is of torch.bool, and no weight"),
        (torch.int8, "is of torch.int8, and no weight"),
        (torch.complex64, "is of torch.complex64, and no weight"),
        (torch.float8_e4m3fn, "is of torch.float8_e4m3fn, and no weight"),
    ],
)
def test_weights_of_a_checkpoint_that_are_none(whole, tmp_path, value, words):
    state = read_tensors(whole / "model.ckpt")
    if isinstance(value, torch.dtype):
        state[WEIGHT] = state[WEIGHT].to(value)
    else:
        state[WEIGHT] = state[WEIGHT].clone().index_fill_(0, torch.tensor(3), value)
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    with pytest.raises(SlimdpmError, match=re.escape(f"{WEIGHT} {words}")):
        convert_checkpoint(tmp_path / "x.ckpt", whole / "config.yaml", ema=False)


def test_weights_of_a_teacher_that_are_none(teacher_folder, tmp_path):
    shutil.copytree(teacher_folder, tmp_path / "teacher")
    file = tmp_path / "teacher" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    for change, words in [
        (lambda t: torch.full_like(t, torch.nan), "conv_in.bias holds numbers that are not finite"),
        (lambda t: t.to(torch.int8), "conv_in.bias is of torch.int8, and no weight"),
    ]:
        save_file({**tensors, "conv_in.bias": change(tensors["conv_in.bias"])}, file, {"format": "pt"})
        with pytest.raises(SlimdpmError, match=words):
            load_pipeline(tmp_path / "teacher")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("linear_start", value) for value in (0.0, -1.0, 2.0, float("nan"), float("inf"))],
        *[("linear_end", value) for value in (0.0, float("nan"), float("inf"), 1e300)],
        *[("scale_factor", value) for value in (0.0, -0.2, float("nan"), float("inf"), 1e30)],
        *[("timesteps", value) for value in (0, -5, 10**9)],
        *[("unet_config.params.num_res_blocks", value) for value in (0, -1, 10**9)],
        ("unet_config.params.model_channels", 2**40),
        ("unet_config.params.channel_mult", [1] * 1000),
        ("unet_config.params.channel_mult", [10**9]),
        ("unet_config.params.channel_mult", [-1, 2]),
        ("unet_config.params.attention_resolutions", [1] * 100),
        ("unet_config.params.in_channels", 0),
        ("unet_config.params.out_channels", 4),  # of latents with three channels
        ("unet_config.params.image_size", 10**12),
        ("unet_config.params.dropout", float("nan")),
        ("first_stage_config.params.n_embed", 10**12),
        ("first_stage_config.params.ddconfig.ch_mult", [1] * 1000),
        ("first_stage_config.params.ddconfig.num_res_blocks", 10**6),
        ("first_stage_config.params.ddconfig.resolution", 0),
    ],
)
def test_a_yaml_beyond_reason(whole, tmp_path, key, value):
    values = yaml.safe_load((whole / "config.yaml").read_text())
    place = values["model"]["params"]
    *parents, last = key.split(".")
    for parent in parents:
        place = place[parent]
    place[last] = value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(SlimdpmError, match=last):
        convert_checkpoint(whole / "model.ckpt", tmp_path / "config.yaml")


@pytest.mark.parametrize("measured", [0.0, float("nan"), float("inf"), -1.0, [1.0, 2.0]])
def test_a_scale_that_training_cannot_have_measured(whole, tmp_path, measured):
    values = yaml.safe_load((whole / "config.yaml").read_text())
    values["model"]["params"]["scale_by_std"] = True
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    state = {**read_tensors(whole / "model.ckpt"), "scale_factor": torch.tensor(measured)}
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    with pytest.raises(SlimdpmError, match="scale_factor: "):
        convert_checkpoint(tmp_path / "x.ckpt", tmp_path / "config.yaml")


def test_of_two_imports_into_one_folder_the_first_counts(whole, tmp_path, monkeypatch):
    pipeline = Parts.pipeline

    def overtaken(parts):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "model_index.json").write_text("of another process")
        return pipeline(parts)

    monkeypatch.setattr(Parts, "pipeline", overtaken)
    with pytest.raises(SlimdpmError, match="out cannot be written: Directory not empty"):
        import_checkpoint(whole / "model.ckpt", whole / "config.yaml", tmp_path / "out")
    assert (tmp_path / "out" / "model_index.json").read_text() == "of another process"
    assert os.listdir(tmp_path) == ["out"]


def test_an_interrupted_import_leaves_nothing(whole, tmp_path, monkeypatch):
    def interrupted(parts):
        raise KeyboardInterrupt

    monkeypatch.setattr(Parts, "pipeline", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_checkpoint(whole / "model.ckpt", whole / "config.yaml", tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("part", ["scheduler", "tokenizer", "unet", "vae", "something"])
def test_a_config_folder_that_names_a_module_of_its_own(tmp_path, monkeypatch, part):
    """diffusers would import it and call its class."""
    proof = tmp_path / "proof"
    (tmp_path / "evilmod.py").write_text(f"open({str(proof)!r}, 'w')\nclass Evil: pass")
    monkeypatch.syspath_prepend(tmp_path)
    save_file({WEIGHT: torch.zeros(1)}, tmp_path / "sd.safetensors")
    index = {"_class_name": "StableDiffusionPipeline", part: ["evilmod", "Evil"]}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(SlimdpmError, match=f"the {part} of .* is a Evil of evilmod, which is not supported"):
        import_single_file(tmp_path / "sd.safetensors", str(tmp_path / "configs"), tmp_path / "out")
    assert not proof.exists() and "evilmod" not in sys.modules and not (tmp_path / "out").exists()

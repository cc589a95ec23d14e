"""Original checkpoints: pickles that want more than tensors, archives, tensors of the wrong kinds, their YAML."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from random import Random
from typing import Any

import yaml

from .base import ORIGINALS, Base
from .case import Case, Outcome, kind
from .kinds_recipes import REFUSED
from .kinds_teachers import EVIL, Runs, damaged_tensors
from .mutate import copied, mutated, scarred, wild


def _import(checkpoint: Path, config: Path, folder: Path, rng: Random | None = None) -> list[Any]:
    extra = ["--no-ema"] if rng is not None and rng.random() < 0.2 else []
    return ["import", checkpoint, "--config", config, "-o", folder / "out", *extra]


def _clean(outcome: Outcome) -> None:
    out = outcome.folder / "out"
    assert outcome.code == 0 or not out.exists(), "refused, and something was written"


def _finite(outcome: Outcome) -> None:
    """What was imported is made of finite floats."""
    import torch
    from safetensors.torch import load_file

    _clean(outcome)
    for file in (outcome.folder / "out").rglob("*.safetensors"):
        for name, tensor in load_file(file).items():
            assert not tensor.is_floating_point() or torch.isfinite(tensor).all(), f"{name} is not finite"


def _same_as(base: Base, name: str) -> Any:
    """A check that the weights are those of the whole checkpoint, which is imported beside it."""

    def check(outcome: Outcome) -> None:
        import torch
        from safetensors.torch import load_file

        from slimdpm.originals import import_checkpoint

        _clean(outcome)
        if outcome.code:
            return
        whole, expected = base.originals / name, outcome.folder / "expected"
        import_checkpoint(whole / "model.ckpt", whole / "config.yaml", expected)
        for file in expected.rglob("*.safetensors"):
            found = load_file(outcome.folder / "out" / file.relative_to(expected))
            for key, tensor in load_file(file).items():
                assert torch.equal(found[key], tensor), f"{file.parent.name}: {key} differs from the checkpoint's"

    return check


@kind(25)
def hostile_pickle(rng: Random, folder: Path, base: Base) -> Case:
    import torch

    name, how = rng.choice(ORIGINALS), rng.choice(["zip", "old", "bare", "key", "deep", "inert", "reduce", "proto"])
    (folder / "evilmod.py").write_text(EVIL)
    runs, file = Runs(rng.randrange(5)), folder / "model.ckpt"
    state: Any = {"state_dict": {"weight": torch.ones(2)}, "callbacks": runs}
    if how == "zip":
        torch.save(state, file)
    elif how == "old":
        torch.save(state, file, _use_new_zipfile_serialization=False)
    elif how == "bare":
        file.write_bytes(pickle.dumps(runs, rng.choice([0, 1, 2, 4])))
    elif how == "key":
        torch.save({"state_dict": {"weight": torch.ones(2)}, "x": OrderedDict(a=[{"b": (runs,)}])}, file)
    elif how == "deep":
        file.write_bytes(b"(" * 200_000 + b".")
    elif how == "inert":
        module = rng.choice(["numpy", "pathlib", "omegaconf", "pytorch_lightning.callbacks"])
        attribute = rng.choice(["load", "os.system", "Path.touch", "f2py", "core.os.system"])
        file.write_bytes(f"c{module}\n{attribute}\n(VCANARY-inert\ntR.".encode())
    elif how == "reduce":
        file.write_bytes(b"cos\nsystem\n(Vtouch CANARY-reduce\ntR.")
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(runs, 2))
            archive.writestr("archive/version", "3")
    if rng.random() < 0.2:
        file = file.rename(folder / f"model.{rng.choice(['safetensors', 'pt', 'bin', 'pth'])}")
    config = base.originals / name / "config.yaml" if rng.random() < 0.7 else base.originals / "sd" / "configs"
    return Case(_import(file, config, folder), "refused", _clean, note=how)


@kind(20)
def checkpoint_bytes(rng: Random, folder: Path, base: Base) -> Case:
    """What is scarred behind the archive's directory is found by the zip's checksums, or the weights are right."""
    name = rng.choice(ORIGINALS)
    whole = base.originals / name
    data, note = scarred((whole / "model.ckpt").read_bytes(), rng, 4096)
    (folder / "model.ckpt").write_bytes(data)
    return Case(_import(folder / "model.ckpt", whole / "config.yaml", folder), check=_same_as(base, name), note=note)


def _rezipped(source: Path, target: Path, method: int) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for item in old.infolist():
            new.writestr(item.filename, old.read(item))


@kind(14)
def checkpoint_other_archive(rng: Random, folder: Path, base: Base) -> Case:
    """The same weights, compressed or in the format of old: they are read, or refused, never read wrongly."""
    import torch

    name, how = rng.choice(ORIGINALS), rng.choice(["stored", "deflated", "bzip2", "lzma", "old", "half"])
    whole, file = base.originals / name, folder / "model.ckpt"
    methods = {"stored": 0, "deflated": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}
    if how in methods:
        _rezipped(whole / "model.ckpt", file, methods[how])
    else:
        saved = torch.load(whole / "model.ckpt", weights_only=True)
        torch.save(saved, file, _use_new_zipfile_serialization=how != "old")
    expect = "works" if how in ("old", "half", "deflated") else "either"
    return Case(_import(file, whole / "config.yaml", folder), expect, _same_as(base, name), note=how)


@kind(35)
def checkpoint_tensors(rng: Random, folder: Path, base: Base) -> Case:
    """One tensor that is missing, of another kind or shape, or not finite."""
    import torch

    name = rng.choice(ORIGINALS)
    whole, file = base.originals / name, folder / "model.ckpt"
    state = torch.load(whole / "model.ckpt", weights_only=True)["state_dict"]
    used = ("model_ema.diffusion_model", "first_stage_model.") if name == "ffhq" else ("model.", "first_stage_model.")
    key = rng.choice([k for k in state if k.startswith(used)])  # the averages stand for the weights, if there are any
    shape = state[key].shape
    tensor, how = (
        state[key],
        rng.choice(
            [
                "nan",
                "inf",
                "bool",
                "int8",
                "complex",
                "int64",
                "shape",
                "gone",
                "more",
                "meta",
                "quantized",
                "sparse",
                "number",
                "half",
                "object",
                "strided",
                "long name",
            ]
        ),
    )
    if how in ("nan", "inf"):
        tensor = tensor.clone()
        tensor.view(-1)[rng.randrange(tensor.numel())] = float(how)
    elif how == "shape":
        tensor = rng.choice([tensor[None], tensor.reshape(-1), tensor.expand(2, *tensor.shape).clone(), torch.zeros(0)])
    elif how == "quantized":
        tensor = torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)
    elif how == "sparse":
        tensor = tensor.to_sparse()
    elif how == "strided":
        tensor = torch.as_strided(torch.ones(1), tensor.shape, [0] * tensor.ndim)
    elif how == "meta":
        tensor = tensor.to("meta")
    elif how in ("number", "object"):
        tensor = 3.5 if how == "number" else wild(rng)
    elif how not in ("gone", "more", "long name"):
        kinds = {
            "bool": torch.bool,
            "int8": torch.int8,
            "complex": torch.complex64,
            "int64": torch.int64,
            "half": torch.float16,
        }
        tensor = tensor.to(kinds[how])
    state[key] = tensor
    if how == "gone":
        del state[key]
    elif how in ("more", "long name"):
        state["extra\x1b[31m" if how == "more" else "x" * 5000] = torch.ones(2)
    torch.save({"state_dict": state} if rng.random() < 0.8 else state, file)
    same = how == "shape" and [n for n in tensor.shape if n != 1] == [n for n in shape if n != 1]
    expect = "either" if same or how in ("half", "strided", "sparse", "quantized") else "refused"
    argv = _import(file, whole / "config.yaml", folder)
    return Case(argv, expect, _finite, note=f"{key} {how}")


@kind(40)
def original_yaml(rng: Random, folder: Path, base: Base) -> Case:
    name = rng.choice(ORIGINALS)
    whole = base.originals / name
    values, note = mutated(yaml.safe_load((whole / "config.yaml").read_text()), rng, ("model",))
    if rng.random() < 0.3:
        key = rng.choice(["linear_start", "linear_end", "scale_factor", "timesteps"])
        value = rng.choice([0, -1, float("nan"), float("inf"), 1e300, True, "x", 10**30, None])
        params = values["model"].get("params") if isinstance(values.get("model"), dict) else None
        if isinstance(params, dict):  # else it is malformed already
            params[key] = value
        note = f"{key} = {value}"
    (folder / "config.yaml").write_text(yaml.safe_dump(values), "utf-8", "surrogatepass")
    return Case(_import(whole / "model.ckpt", folder / "config.yaml", folder, rng), check=_scheduled, note=note)


def _scheduled(outcome: Outcome) -> None:
    """The process that was imported has noise at all of its steps."""
    import numpy as np
    from diffusers import DDIMScheduler

    _finite(outcome)
    if outcome.code == 0:
        betas = DDIMScheduler.from_pretrained(outcome.folder / "out" / "scheduler").betas.numpy()
        assert np.isfinite(betas).all() and (betas > 0).all() and (betas < 1).all(), (
            f"betas of {betas.min()} to {betas.max()}"
        )


@kind(15)
def original_yaml_text(rng: Random, folder: Path, base: Base) -> Case:
    whole = base.originals / rng.choice(ORIGINALS)
    text = (whole / "config.yaml").read_bytes()
    data, note = scarred(text, rng, len(text))
    expect = "either"
    if rng.random() < 0.5:
        note = rng.choice(sorted(REFUSED))
        data, expect = text + REFUSED[note].encode() if rng.random() < 0.3 else REFUSED[note].encode(), "either"
    (folder / "config.yaml").write_bytes(data)
    return Case(_import(whole / "model.ckpt", folder / "config.yaml", folder), expect, _finite, note=note)


@kind(30)
def single_file_config(rng: Random, folder: Path, base: Base) -> Case:
    """The folder that a single file of Stable Diffusion takes its configs from."""
    configs = copied(base.originals / "sd" / "configs", folder / "configs")
    for place in (folder, configs):
        (place / "evilmod.py").write_text(EVIL)
    index = json.loads((configs / "model_index.json").read_text())
    how = rng.choice(["evil", "index", "part", "part", "bytes", "gone"])
    file = rng.choice(sorted(configs.rglob("*.json")))
    note = str(file.relative_to(configs))
    if how == "evil":
        part = rng.choice(
            ["scheduler", "unet", "vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor", "extra"]
        )
        index[part] = rng.choice(
            [["evilmod", "Evil"], ["os", "system"], ["builtins", "exec"], ["diffusers.utils", "logging"]]
        )
        note = part
        (configs / "model_index.json").write_text(json.dumps(index))
    elif how == "index":
        values, note = mutated(index, rng)
        (configs / "model_index.json").write_text(json.dumps(values), "utf-8", "surrogatepass")
    elif how == "part":
        values, note = mutated(json.loads(file.read_text()), rng)
        file.write_text(json.dumps(values), "utf-8", "surrogatepass")
        note = f"{file.relative_to(configs)} {note}"
    elif how == "bytes":
        file.write_bytes(scarred(file.read_bytes(), rng)[0])
    else:
        file.unlink()
    argv = _import(base.originals / "sd" / "sd.safetensors", configs, folder)
    return Case(argv, check=_finite, note=f"{how} {note}")


@kind(12)
def single_file_weights(rng: Random, folder: Path, base: Base) -> Case:
    import shutil

    shutil.copyfile(base.originals / "sd" / "sd.safetensors", folder / "sd.safetensors")
    note, _ = damaged_tensors(rng, folder / "sd.safetensors")
    argv = _import(folder / "sd.safetensors", base.originals / "sd" / "configs", folder)
    return Case(argv, check=_finite, note=note)

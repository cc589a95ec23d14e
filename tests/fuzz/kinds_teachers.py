"""Teachers: the configs of their parts, their weights, and what in them would run."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from .base import QUICK, Base, sets
from .case import Case, Outcome, kind
from .mutate import copied, mutated, replaced, scarred, wild

NAMES = ("pixel", "pixel", "resnet", "latent", "kl", "class", "embedded", "text", "xl")


def use(rng: Random, teacher: Path, folder: Path, base: Base, heavy: float = 0.12) -> list[Any]:
    """A command that reads a teacher; some of them all of it."""
    slim = ["slim", teacher, base.labelled, "-o", folder / "out", "--steps", 1, *sets(*QUICK)]
    picked = 0.15 + 0.6 * rng.random() if base.quick else rng.random()
    if picked < heavy / 2:
        return slim
    if picked < heavy:
        measured = [
            "evaluate",
            teacher,
            "--against",
            base.labelled,
            "-n",
            12,
            "--steps",
            1,
            "--extractor",
            base.extractor,
        ]
        return [*measured, "-o", folder / "out"]
    if picked < 0.7:
        return ["sample", teacher, "-n", 2, "--steps", rng.choice([1, 2, 3]), "-o", folder / "out"]
    if picked < 0.78:
        return ["profile", teacher]
    if picked < 0.82:
        return ["train", base.labelled, "--like", teacher, "-o", folder / "out", *sets(*QUICK), "--dry-run"]
    return [*slim, "--dry-run"]


def finite_pictures(outcome: Outcome) -> None:
    """Images of one single value come from weights or a scheduler that gave nan."""
    from PIL import Image

    for file in [*outcome.folder.glob("out/0*.png")][:1]:
        array = np.asarray(Image.open(file))
        assert array.min() < array.max(), f"every pixel of {file.name} is {array.min()}"


def _configured(part: str, names: tuple[str, ...], file: str = "config.json") -> Any:
    def make(rng: Random, folder: Path, base: Base) -> Case:
        teacher = copied(base.teacher(name := rng.choice(names)), folder / "teacher")
        place = teacher / part / file
        values, note = mutated(json.loads(place.read_text()), rng)
        replaced(place, json.dumps(values).encode("utf-8", "surrogatepass"))
        return Case(use(rng, teacher, folder, base), note=f"{name}: {note}", check=finite_pictures)

    return make


for _part, _names, _weight in (
    ("unet", NAMES, 70),
    ("vqvae", ("latent", "kl", "embedded"), 25),
    ("vae", ("text", "xl"), 15),
    ("text_encoder", ("text", "xl"), 25),
    ("text_encoder_2", ("xl",), 8),
    ("class_embedder", ("embedded",), 10),
):
    _make = _configured(_part, _names)
    _make.__name__ = f"{_part}_config"
    kind(_weight)(_make)

_make = _configured("scheduler", NAMES, "scheduler_config.json")
_make.__name__ = "scheduler_config"
kind(50)(_make)
_make = _configured("", NAMES, "model_index.json")
_make.__name__ = "model_index"
kind(40)(_make)


@kind(20)
def tokenizer_files(rng: Random, folder: Path, base: Base) -> Case:
    teacher = copied(base.teacher("text"), folder / "teacher")
    file = rng.choice(sorted((teacher / "tokenizer").iterdir()))
    data, note = scarred(file.read_bytes(), rng)
    if file.suffix == ".json" and rng.random() < 0.6:
        values, note = mutated(json.loads(file.read_text()), rng)
        data = json.dumps(values).encode("utf-8", "surrogatepass")
    replaced(file, data)
    return Case(use(rng, teacher, folder, base, 0.2), note=f"{file.name}: {note}")


@kind(25)
def config_bytes(rng: Random, folder: Path, base: Base) -> Case:
    """Any JSON of a teacher with damaged bytes, or with what a parser chokes on."""
    teacher = copied(base.teacher(rng.choice(NAMES)), folder / "teacher")
    file = rng.choice(sorted(teacher.rglob("*.json")))
    data, note = scarred(file.read_bytes(), rng)
    if rng.random() < 0.5:
        choices = {
            "deep": b"[" * 100_000,
            "digits": b'{"sample_size": ' + b"9" * 6000 + b"}",
            "nothing": b"",
            "list": b"[]",
            "null": b"null",
            "nan": b'{"sample_size": NaN}',
            "utf-16": "{}".encode("utf-16"),
            "text": b'"x"',
            "twice": b'{"_class_name": "UNet2DModel", "_class_name": "Evil"}',
            "noise": rng.randbytes(2000),
        }
        note, data = rng.choice(sorted(choices.items()))
    replaced(file, data)
    return Case(use(rng, teacher, folder, base), note=f"{file.relative_to(teacher)}: {note}")


EVIL = "import os\nopen(os.environ['FUZZ_CANARY'] + '-imported', 'w')\nclass Evil:\n    config = {}\n"
EVIL += "    @classmethod\n    def from_pretrained(cls, *a, **k):\n"
EVIL += "        open(os.environ['FUZZ_CANARY'] + '-called', 'w')\n"
EVIL += "        return cls()\n    from_config = load_config = from_single_file = from_pretrained\n"


class Runs:
    """Unpickling it in the ordinary way leaves the canary."""

    def __init__(self, how: int):
        self.how = how

    def __reduce__(self) -> tuple:
        command = "open(__import__('os').environ['FUZZ_CANARY'] + '-unpickled', 'w')"
        if self.how == 0:
            return os.system, ("touch CANARY-system",)
        if self.how == 1:
            return eval, (command,)
        if self.how == 2:
            return exec, (command,)
        if self.how == 3:
            return __import__, ("evilmod",)
        return os.mkdir, ("CANARY-folder",)


@kind(25)
def teacher_with_code(rng: Random, folder: Path, base: Base) -> Case:
    """Modules of its own, entries of other libraries, pickles for weights."""
    import torch

    teacher = copied(base.teacher(name := rng.choice(NAMES)), folder / "teacher")
    for place in (folder, teacher, teacher / "unet"):
        (place / "evilmod.py").write_text(EVIL)
    index = json.loads((teacher / "model_index.json").read_text())
    part = rng.choice([key for key, value in index.items() if isinstance(value, list) and value[0]])
    how = rng.choice(
        ["module", "os", "builtins", "pipeline", "pipeline file", "added", "class", "bin", "auto_map", "torch"]
    )
    if how in ("module", "os", "builtins", "torch"):
        index[part] = {
            "module": ["evilmod", "Evil"],
            "os": ["os", "system"],
            "builtins": ["builtins", rng.choice(["exec", "object"])],
            "torch": rng.choice(
                [["torch", "load"], ["torch.nn", "Linear"], ["diffusers.utils", "logging"], ["slimdpm.cli", "app"]]
            ),
        }[how]
    elif how == "pipeline":
        index["_class_name"] = ["evilmod", "Evil"]
    elif how == "pipeline file":
        index["_class_name"] = ["pipeline", "Evil"]
        (teacher / "pipeline.py").write_text(EVIL)
    elif how == "added":
        index["extra"] = ["evilmod", "Evil"]
    elif how == "class":
        index[part][1] = rng.choice(
            ["Evil", "__import__", "DiffusionPipeline", "AutoPipelineForText2Image", "logging", ""]
        )
    replaced(teacher / "model_index.json", json.dumps(index).encode())
    if how == "auto_map":
        file = teacher / "unet" / "config.json"
        config = {**json.loads(file.read_text()), "auto_map": {"AutoModel": "evilmod.Evil"}, "_class_name": "Evil"}
        replaced(file, json.dumps(config).encode())
    if how == "bin":
        file = next(iter((teacher / "unet").glob("*.safetensors")))
        file.unlink()
        payload = {"conv_in.weight": Runs(rng.randrange(5))}
        target = file.with_suffix(".bin")
        if rng.random() < 0.5:
            torch.save(payload, target)
        else:
            target.write_bytes(pickle.dumps(payload))
    return Case(use(rng, teacher, folder, base, 0.25), "either", note=f"{name} {part} {how}")


def safetensors(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header and the bytes after it."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def packed(header: Any, body: bytes) -> bytes:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + body


def damaged_tensors(rng: Random, file: Path) -> tuple[str, bool]:
    """Damage a safetensors file; says how, and whether its values are still numbers of the right kind."""
    header, body = safetensors(file)
    names = [name for name in header if name != "__metadata__"]
    if not names:  # the aligners of a run without feature pairs
        replaced(file, scarred(file.read_bytes(), rng)[0])
        return f"{file.name} without tensors, scarred", True
    name = rng.choice(names)
    how = rng.choice(
        ["cut", "bytes", "header", "nan", "inf", "kind", "shape", "name", "gone", "extra", "empty", "length"]
    )
    start, end = header[name]["data_offsets"]
    if how == "cut":
        data = file.read_bytes()[: rng.randrange(file.stat().st_size)]
    elif how == "bytes":
        data, _ = scarred(file.read_bytes(), rng, 8 + 200)
    elif how == "header":
        data = packed(mutated(header, rng)[0], body)
    elif how in ("nan", "inf"):
        value = np.array([np.nan if how == "nan" else np.inf], "<f4").tobytes()
        body = body[:start] + value * (rng.choice([1, (end - start) // 4])) + body[start:]
        body = body[: header[max(names, key=lambda n: header[n]["data_offsets"][1])]["data_offsets"][1]]
        data = packed(header, body)
    elif how == "kind":
        header[name]["dtype"] = rng.choice(["BOOL", "I8", "I32", "U32", "F16", "F64", "BF16", "I64", "F8_E4M3"])
        data = packed(header, body)
    elif how == "shape":
        header[name]["shape"] = rng.choice(
            [[], [0], [-1], [2**40], [*header[name]["shape"], 1], header[name]["shape"][::-1]]
        )
        data = packed(header, body)
    elif how == "name":
        header[rng.choice(["\x1b[31mweight", "x" * 5000, f"{name}.lora_A", "../x"])] = header.pop(name)
        data = packed(header, body)
    elif how == "gone":
        length = end - start
        del header[name]
        for other in names:
            if other != name and header[other]["data_offsets"][0] >= end:
                header[other]["data_offsets"] = [offset - length for offset in header[other]["data_offsets"]]
        data = packed(header, body[:start] + body[end:])
    elif how == "extra":
        header["extra\x07"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(body), len(body) + 4]}
        data = packed(header, body + bytes(4))
    elif how == "empty":
        data = rng.choice([b"", b"\x00" * 8, packed({}, b""), b"{}"])
    else:
        data = rng.choice([2**63, 2**31, 10**12, 10]).to_bytes(8, "little") + file.read_bytes()[8:]
    replaced(file, data)
    return f"{file.name} {name} {how}", how not in ("nan", "inf", "gone", "empty", "name")


@kind(50)
def teacher_weights(rng: Random, folder: Path, base: Base) -> Case:
    teacher = copied(base.teacher(name := rng.choice(NAMES)), folder / "teacher")
    note, harmless = damaged_tensors(rng, rng.choice(sorted(teacher.rglob("*.safetensors"))))
    words = use(rng, teacher, folder, base, 0.25)
    while "--dry-run" in words or words[0] == "profile":  # these read no weights
        words = use(rng, teacher, folder, base)
    return Case(words, "either" if harmless else "refused", finite_pictures, note=f"{name} {note}")


SCHEDULERS = [
    "ddim",
    "ddpm",
    "dpm++",
    "dpm++sde",
    "euler",
    "euler-a",
    "heun",
    "lms",
    "pndm",
    "unipc",
    "deis",
    "dpm++2s",
    "tcd",
    "lcm",
    "EulerDiscreteScheduler",
    "ScoreSdeVeScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "RePaintScheduler",
    "KarrasVeScheduler",
    "EDMEulerScheduler",
    "CMStochasticIterativeScheduler",
    "UnCLIPScheduler",
    "VQDiffusionScheduler",
    "DDIMInverseScheduler",
    "IPNDMScheduler",
    "AmusedScheduler",
    "DDPMWuerstchenScheduler",
    "SASolverScheduler",
    "SchedulerMixin",
    "UNet2DModel",
    "os",
    "__class__",
    "",
]


@kind(60)
def scheduler_and_steps(rng: Random, folder: Path, base: Base) -> Case:
    """Any scheduler, with few steps and with as many as the process has, of any prediction."""
    teacher = copied(base.teacher(rng.choice(["pixel", "resnet", "latent", "class"])), folder / "teacher")
    file = teacher / "scheduler" / "scheduler_config.json"
    values = json.loads(file.read_text())
    timesteps = rng.choice([1, 2, 4, 5, 20, 20, 100, 1000, 1000])
    values |= {"num_train_timesteps": timesteps, "prediction_type": rng.choice(["epsilon", "v_prediction", "sample"])}
    values |= {"beta_schedule": rng.choice(["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp"])}
    for key, choices in {
        "rescale_betas_zero_snr": [True],
        "timestep_spacing": ["leading", "trailing", "linspace", "x"],
        "clip_sample": [True],
        "steps_offset": [0, 1, 5, 1000],
        "thresholding": [True],
        "set_alpha_to_one": [False],
        "variance_type": ["fixed_large", "learned", "learned_range"],
    }.items():
        if rng.random() < 0.2:
            values[key] = rng.choice(choices)
    replaced(file, json.dumps(values).encode())
    steps = rng.choice([1, 2, 3, 4, min(timesteps, 20), min(timesteps, 20), timesteps + 1 if timesteps < 50 else 5])
    name = rng.choice(SCHEDULERS)
    words = ["sample", teacher, "-n", 2, "--steps", steps, "--scheduler", name, "-o", folder / "out"]
    if rng.random() < 0.3:
        quick = [
            *QUICK,
            f"samples.scheduler={name}",
            f"samples.steps={steps}",
            f"student.prediction={rng.choice(['epsilon', 'v_prediction', 'sample'])}",
        ]
        words = ["slim", teacher, base.labelled, "-o", folder / "out", "--steps", 1, *sets(*quick)]
        words += ["--dry-run"] if rng.random() < 0.6 or base.quick else []
    return Case(words, check=finite_pictures, note=f"{values['prediction_type']} {timesteps} {name} {steps}")


@kind(15)
def network_json(rng: Random, folder: Path, base: Base) -> Case:
    """A config of a network alone, for `profile` and `train`."""
    values, note = mutated(json.loads((base.folder / "net.json").read_text()), rng)
    if rng.random() < 0.2:
        values["_class_name"] = rng.choice(
            ["UNet2DConditionModel", "AutoencoderKL", "Evil", "DiTTransformer2DModel", wild(rng)]
        )
    (folder / "net.json").write_text(json.dumps(values), "utf-8", "surrogatepass")
    profile = ["profile", folder / "net.json", *(["--json"] if rng.random() < 0.5 else [])]
    train = [
        "train",
        base.images,
        "--model",
        folder / "net.json",
        "-o",
        folder / "out",
        "--steps",
        1,
        *sets(*QUICK[:-1]),
    ]
    return Case(profile if base.quick else rng.choice([profile, [*train, "--dry-run"], train]), note=note)

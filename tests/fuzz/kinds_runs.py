"""What slimdpm has written, damaged: runs, checkpoints, caches, samples, evaluations; and what evaluations take."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from .base import LONGER, QUICK, Base, sets
from .case import Case, Outcome, kind
from .kinds_teachers import NAMES, damaged_tensors, use
from .mutate import copied, mutated, replaced, scarred


def _equal_weights(found: Path, expected: Path) -> None:
    import torch
    from safetensors.torch import load_file

    ours, theirs = load_file(found), load_file(expected)
    assert ours.keys() == theirs.keys(), "other tensors"
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), f"{name} differs from that of an undamaged run"


STUDENT = Path("student", "unet", "diffusion_pytorch_model.safetensors")


def _damage(rng: Random, file: Path) -> str:
    """One file, by bytes or by what it holds."""
    if file.suffix == ".safetensors" and rng.random() < 0.4:
        return damaged_tensors(rng, file)[0]
    if file.suffix == ".json" and rng.random() < 0.5:
        values, note = mutated(json.loads(file.read_text()), rng)
        replaced(file, json.dumps(values).encode("utf-8", "surrogatepass"))
        return f"{file.name} {note}"
    how = rng.choice(["bit", "bit", "scar", "gone", "empty", "folder", "zero", "pipe"])
    data = bytearray(file.read_bytes())
    if how == "bit" and data:
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
        replaced(file, bytes(data))
    elif how == "scar":
        replaced(file, scarred(bytes(data), rng)[0])
    elif how == "gone":
        file.unlink()
    elif how == "empty":
        replaced(file, b"")
    elif how == "folder":
        file.unlink()
        file.mkdir()
    elif how == "zero":
        file.unlink()
        file.symlink_to("/dev/zero")
    elif how == "pipe":
        import os

        file.unlink()
        os.mkfifo(file)
    return f"{file.parent.name}/{file.name} {how}"


@kind(40, slow=True)
def damaged_checkpoint(rng: Random, folder: Path, base: Base) -> Case:
    """A run goes on from a damaged checkpoint: it is named, or the weights are those of the undamaged run."""
    run = copied(base.run, folder / "out")
    newest, oldest = sorted((run / "checkpoints").iterdir())[::-1]
    how = rng.choice(["file", "file", "file", "swap", "rename", "digest"])
    if how == "swap":
        name = rng.choice([f.name for f in newest.iterdir() if f.name != ".lock"])
        data = (oldest / name).read_bytes()
        replaced(newest / name, data)
        note = f"{name} of the older one"
    elif how == "rename":
        note = rng.choice(
            ["step-00000003", "step-00000005", "step-00000006", "step-99999999999999999999", "step-4", "step-x"]
        )
        newest.rename(newest.parent / note)
    elif how == "digest":  # both at once
        note = "; ".join(_damage(rng, rng.choice(sorted(c.iterdir()))) for c in (newest, oldest))
    else:
        note = _damage(rng, rng.choice(sorted(newest.iterdir())))

    def check(outcome: Outcome) -> None:
        if outcome.code == 0:
            _equal_weights(run / STUDENT, base.longer / STUDENT)

    return Case(base.run_words(run, LONGER), check=check, note=note)


@kind(40, slow=True)
def damaged_run(rng: Random, folder: Path, base: Base) -> Case:
    """Any other file of a run, and a command that reads it."""
    run = copied(base.run, folder / "out")
    files = [f for f in sorted(run.rglob("*")) if f.is_file() and "checkpoints" not in f.parts and f.name != ".lock"]
    file = rng.choice(files if rng.random() < 0.5 else [run / "recipe.yaml", run / "metrics.jsonl"])
    if file.name == "metrics.jsonl" and rng.random() < 0.7:
        lines = file.read_text().splitlines()
        line, note = mutated(json.loads(rng.choice(lines)), rng)
        odd = [
            json.dumps(line),
            "5",
            "[]",
            "null",
            "{}",
            '{"step": "x"}',
            '{"step": NaN}',
            "[" * 5000,
            "9" * 6000,
            "\ud800",
            '{"step": 1e400}',
            "x" * 100,
        ]
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(odd))
        replaced(file, "\n".join(lines).encode("utf-8", "surrogatepass"))
        note = f"metrics: {note}"
    elif file.name == "recipe.yaml" and rng.random() < 0.6:
        import yaml

        values, note = mutated(yaml.safe_load(file.read_text()), rng)
        replaced(file, yaml.safe_dump(values).encode("utf-8", "surrogatepass"))
    else:
        note = _damage(rng, file)
    words: list[Any] = rng.choice(
        [
            base.run_words(run, LONGER),
            base.run_words(run),
            ["sample", run, "-n", 2, "--steps", 1, "-o", folder / "images"],
            ["evaluate", run, "--against", base.images, "-n", 10, "--steps", 1, "--extractor", base.extractor],
            ["slim", run, base.images, "-o", folder / "next", "--dry-run", *sets(*QUICK)],
            ["profile", run],
            ["analyze", run, "--against", base.images, "-n", 4, "--samples", 2, "--steps", 1],
        ]
    )
    return Case(words, note=f"{words[0]} {file.relative_to(run)} {note}"[:300])


@kind(20)
def teacher_files(rng: Random, folder: Path, base: Base) -> Case:
    """Any file of a teacher damaged, gone, or a pipe."""
    teacher = copied(base.teacher(rng.choice(NAMES)), folder / "teacher")
    file = rng.choice([f for f in sorted(teacher.rglob("*")) if f.is_file()])
    note = f"{file.relative_to(teacher)} {_damage(rng, file)}"
    return Case(use(rng, teacher, folder, base), note=note)


@kind(20, slow=True)
def damaged_cache(rng: Random, folder: Path, base: Base) -> Case:
    """Kept squares and latents: damage is found, or makes no difference."""
    cache = copied(base.folder / "latent-cache", folder / "cache")
    file = rng.choice([f for f in sorted(cache.rglob("*")) if f.is_file() and f.name != ".lock"])
    note = f"{file.relative_to(cache)} {_damage(rng, file)}"

    def check(outcome: Outcome) -> None:
        if outcome.code == 0:
            _equal_weights(folder / "out" / STUDENT, base.folder / "latent-run" / STUDENT)

    return Case(base.latent_words(folder / "out", cache), check=check, note=note)


@kind(20, slow=True)
def damaged_samples(rng: Random, folder: Path, base: Base) -> Case:
    """A folder of `sample`: images are made again or named, never shown damaged."""
    out = copied(base.samples, folder / "out")
    file = rng.choice([f for f in sorted(out.rglob("*")) if f.is_file()])
    note = _damage(rng, file)

    def check(outcome: Outcome) -> None:
        from PIL import Image

        if outcome.code:
            return
        for expected in sorted(base.samples.rglob("0*.png")):
            found = out / expected.relative_to(base.samples)
            with Image.open(found) as ours, Image.open(expected) as theirs:
                assert np.array_equal(np.asarray(ours), np.asarray(theirs)), f"{found.name} is another image"

    return Case(base.sample_words(out), check=check, note=note)


@kind(20, slow=True)
def damaged_evaluation(rng: Random, folder: Path, base: Base) -> Case:
    """Kept pictures and features: damage is found, or the figures are the same."""
    out = copied(base.folder / "evaluation", folder / "out")
    file = rng.choice([f for f in sorted(out.rglob("*")) if f.is_file() and f.name != ".lock"])
    note = f"{file.relative_to(out)} {_damage(rng, file)}"
    expected = json.loads((base.folder / "evaluation" / "results.json").read_text())

    def check(outcome: Outcome) -> None:
        if outcome.code == 0:
            found = json.loads((out / "results.json").read_text())
            for key in ("models", "floor", "ratios", "images"):
                assert found.get(key) == expected.get(key), f"{key} differ"

    return Case(base.evaluate_words(out), check=check, note=note)


@kind(20)
def reference_statistics(rng: Random, folder: Path, base: Base) -> Case:
    whole = base.folder / "stats.npz"
    file, how = folder / "stats.npz", rng.choice(["bytes", "shape", "kind", "values", "names", "pickle"])
    mu, sigma = np.zeros(6), np.eye(6)
    if how == "bytes":
        file.write_bytes(scarred(whole.read_bytes(), rng)[0])
    else:
        if how == "shape":
            mu, sigma = rng.choice(
                [
                    (np.zeros(5), np.eye(5)),
                    (np.zeros(6), np.eye(5)),
                    (np.zeros((1, 6)), np.eye(6)),
                    (np.array(1.0), np.array(1.0)),
                    (np.zeros(0), np.zeros((0, 0))),
                ]
            )
        elif how == "kind":
            mu, sigma = rng.choice(
                [
                    (mu.astype("U3"), sigma),
                    (mu, sigma.astype(complex) * 1j),
                    (mu.astype(bool), sigma.astype(bool)),
                    (mu.astype("M8[s]"), sigma),
                ]
            )
        elif how == "values":
            mu, sigma = rng.choice(
                [
                    (mu * np.nan, sigma),
                    (mu, sigma * np.inf),
                    (mu, -sigma),
                    (mu, np.triu(np.ones((6, 6)))),
                    (mu + 1e300, sigma),
                    (mu, sigma * 1e300),
                ]
            )
        elif how == "pickle":
            mu = np.array([None] * 6, dtype=object)
        np.savez(file, **{"mu" if how != "names" else rng.choice(["m", "\x1b[31m", "../mu"]): mu, "sigma": sigma})
    words = [
        "evaluate",
        base.teacher("pixel"),
        "--reference-stats",
        file,
        "-n",
        10,
        "--steps",
        1,
        "--extractor",
        base.extractor,
        "-o",
        folder / "out",
    ]
    words += ["--against", base.images] if rng.random() < 0.4 else []
    return Case(
        words,
        "either" if how == "bytes" else "refused",
        _numbers,
        note=f"{how} {mu.dtype}{mu.shape} {sigma.dtype}{sigma.shape}",
    )


def _numbers(outcome: Outcome) -> None:
    """Whatever an evaluation says is a number, but where there is none."""
    file = outcome.folder / "out" / "results.json"
    if outcome.code == 0 and file.exists():
        assert "NaN" not in file.read_text() and "Infinity" not in file.read_text(), "nan among the results"


@kind(30)
def extractors(rng: Random, folder: Path, base: Base) -> Case:
    """ONNX files that are damaged or want more than to compute, and code in the place of one."""
    import onnx
    import torch
    from onnx import TensorProto, helper

    how = rng.choice(
        [
            "bytes",
            "bytes",
            "script",
            "pickle",
            "external",
            "inputs",
            "outputs",
            "operator",
            "nan",
            "rank",
            "kind",
            "text",
            "loop",
        ]
    )
    file, expect = folder / "x.onnx", "refused"
    model = onnx.load(base.extractor)
    if how == "bytes":
        file.write_bytes(scarred(base.extractor.read_bytes(), rng)[0])
        expect = "either"
    elif how == "script":

        class Writes(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                torch.save(x, "CANARY-script")
                return x.mean(dim=(2, 3))

        file = folder / rng.choice(["x.pt", "x.ts", "x.torchscript", "x.onnx"])
        try:
            torch.jit.script(Writes()).save(str(file))
        except Exception:
            torch.jit.script(torch.nn.Conv2d(3, 6, 3)).save(str(file))
    elif how == "pickle":
        from .kinds_teachers import Runs

        file = folder / rng.choice(["x.pt", "x.pth", "x.onnx", "x"])
        torch.save({"x": Runs(rng.randrange(5))}, file)
    elif how == "external":
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", rng.choice(["/dev/zero", "../../../etc/passwd", "/etc/passwd", "none", "\x1b[31m"])),
            ("offset", "0"),
            ("length", "648"),
        ):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    elif how == "inputs":
        model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
        if rng.random() < 0.5:
            del model.graph.input[:]
    elif how == "outputs":
        del model.graph.output[:]
    elif how == "operator":
        model.graph.node[0].op_type = rng.choice(["Evil", "PyOp", "\x1b[31m", ""])
    elif how == "nan":
        model.graph.initializer[0].raw_data = np.full(162, rng.choice([np.nan, np.inf]), "<f4").tobytes()
    elif how == "rank":
        for _ in range(2):
            model.graph.node.pop()
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("positive", TensorProto.FLOAT, None))
        expect = "either"
    elif how == "kind":
        model.graph.input[0].type.tensor_type.elem_type = rng.choice(
            [TensorProto.DOUBLE, TensorProto.UINT8, TensorProto.STRING, TensorProto.BOOL]
        )
    elif how == "text":
        file.write_bytes(rng.choice([b"", b"hello", bytes(1000), b"\x08" * 1000]))
    elif how == "loop":
        file.symlink_to(rng.choice(["x.onnx", "/dev/zero", "/nowhere"]))
    if not file.exists() and not file.is_symlink():
        file.write_bytes(model.SerializeToString())
    words = [
        "evaluate",
        base.teacher("pixel"),
        "--against",
        base.images,
        "-n",
        10,
        "--steps",
        1,
        "--extractor",
        file,
        "-o",
        folder / "out",
    ]
    return Case(words, expect, _numbers, note=how)

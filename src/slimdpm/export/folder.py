"""A pipeline as a folder that is complete in itself: graphs, the sampler as a table, and a runner.

slimdpm.json     what the folder is: shapes, conditions, digests of its files
sampler.json     each sampler as a table (`slimdpm.export.sampler_table`)
unet/ vae_decoder/ text_encoder/ ...     as diffusers and optimum name them: config.json and model.onnx
generate.py      makes images; needs numpy, pillow and onnxruntime or openvino (`slimdpm.export.runner`)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from slimdpm.conditioning.classes import ClassLabels
from slimdpm.conditioning.image import Editing, Inpainting
from slimdpm.conditioning.text import Text
from slimdpm.export import runner
from slimdpm.export.checks import check_graph
from slimdpm.export.graphs import Graph, graphs_of, text_encoders, to_onnx, to_openvino
from slimdpm.export.sampler_table import sampler_table
from slimdpm.export.storage import Weights, shrink
from slimdpm.method.networks import network_config
from slimdpm.pipelines.fitting import fitted, size_step
from slimdpm.pipelines.sampling import SCHEDULERS, make_scheduler, probe
from slimdpm.pipelines.shell import Shell, network_of, shell_of
from slimdpm.pipelines.teacher import open_pipeline
from slimdpm.system.amounts import storage
from slimdpm.system.files import atomic_folder, check_new, write_json
from slimdpm.system.hashing import file_digest, fingerprint
from slimdpm.system.progress import Display
from slimdpm.system.sizes import Size, sides

Runtime = Literal["onnx", "openvino"]
STEPS = (4, 8, 20, 50)


@dataclass(frozen=True)
class Samplers:
    """Which samplers a folder offers.

    Attributes:
        names: short names or classes of diffusers; None is the pipeline's own.
        steps: each sampler is written for each of these.
    """

    names: tuple[str | None, ...] = (None, "dpm++")
    steps: tuple[int, ...] = STEPS


def export_pipeline(
    source: str | Path,
    output: str | Path,
    *,
    to: Runtime = "onnx",
    samplers: Samplers | None = None,
    weights: Weights = "float32",
    size: Size | None = None,
    portable: bool = False,
    display: Display | None = None,
) -> None:
    """Write a pipeline, teacher's or student's, as a folder that runs without PyTorch.

    Each graph is compared with the network that it was made of: where they differ no folder is left.

    Args:
        source: a run folder, a diffusers folder or a hub id.
        output: the new folder.
        to: of which runtime.
        samplers: that it offers.
        weights: how they are kept; computed with is float32.
        size: of the images in pixels, of which the graphs then are for good; by default the pipeline's own, and any
            other that its networks take.
        portable: ONNX's own operators alone, for other runtimes than ONNX Runtime, which has a faster attention.
        display: where progress is shown.

    Raises:
        SlimdpmError: for a pipeline, a sampler or a network that cannot be exported, or a graph that disagrees.
    """
    display, samplers, output = display or Display(), samplers or Samplers(), Path(output)
    check_new(output)
    pipeline = open_pipeline(source)
    shell, network = shell_of(pipeline), network_of(pipeline)
    config = network_config(network)
    if size is None:
        step = size_step(shell, config)
    else:
        shell, step = fitted(shell, size, {"network": config}, "--size"), None
    tables = sampler_tables(shell, samplers)
    with atomic_folder(output) as folder:
        graphs = list(graphs_of(network, shell, step))
        for graph in display.track(graphs, len(graphs), "exporting", "networks"):
            _write_graph(graph, folder / graph.name, to, weights, portable, display)
        pipeline.scheduler.save_pretrained(folder / "scheduler")
        manifest = {**_facts(shell, step, tables, to), "network": fingerprint(network), "weights": weights}
        for which in ("", "_2"):
            if getattr(pipeline, f"tokenizer{which}", None) is not None:
                _write_tokenizer(getattr(pipeline, f"tokenizer{which}"), folder, which)
        write_json(folder / "model_index.json", _index(pipeline, folder))
        write_json(folder / "sampler.json", {"schedulers": tables})
        write_json(folder / "slimdpm.json", {**manifest, "files": _files(folder)})
        (folder / "generate.py").write_text(runner.source(), encoding="utf-8")
        (folder / "README.md").write_text(_card(manifest, tables, to), encoding="utf-8")
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    display.say(f"{output}: {storage(size)}; python {output / 'generate.py'} -n 8 -o images")


def sampler_tables(shell: Shell, samplers: Samplers) -> dict[str, dict[str, Any]]:
    """``{name: {steps: table}}``; the first is the folder's own.

    Raises:
        SlimdpmError: for a scheduler that is not a table, or cannot take so many steps.
    """
    tables: dict[str, dict[str, Any]] = {}
    for name in samplers.names:
        for steps in samplers.steps:
            probe(shell, name, steps, "--steps")
        made = {str(n): sampler_table(make_scheduler(shell, name), n).as_json() for n in samplers.steps}
        tables[name or _name_of(shell.scheduler)] = made
    return tables


def _name_of(scheduler: Any) -> str:
    """The short name of a scheduler, or its class: two short names may be of one class."""
    cls, config = type(scheduler).__name__, scheduler.config
    named = (name for name, (kind, own) in SCHEDULERS.items() if kind == cls and own.items() <= dict(config).items())
    return next(named, cls)


def _write_graph(graph: Graph, folder: Path, to: Runtime, weights: Weights, portable: bool, display: Display) -> None:
    folder.mkdir()
    file = folder / "model.onnx"
    to_onnx(graph, file, portable=portable or to != "onnx")
    shrink(file, weights)
    if to == "openvino":
        file = to_openvino(file)
    off = check_graph(graph, file, weights)
    config = dict(graph.config)
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str, sort_keys=True) + "\n")
    display.say(f"{graph.name}: {storage(sum(f.stat().st_size for f in folder.iterdir()))}, {off:.1e} off PyTorch")


def _facts(shell: Shell, step: int | None, tables: dict[str, dict[str, Any]], to: Runtime) -> dict[str, Any]:
    """What the runner must know beside the graphs."""
    place = "model.onnx" if to == "onnx" else "openvino_model.xml"
    default = next(iter(tables))
    parts = {"unet": "unet"}
    parts |= {"decoder": "vae_decoder"} if shell.autoencoder is not None else {}
    parts |= {"encoder": "vae_encoder"} if shell.conditioning.extra else {}
    parts |= {name: name for name in text_encoders(shell.conditioning)} if isinstance(shell.conditioning, Text) else {}
    return {
        "format": runner.FORMAT,
        "made by": f"slimdpm {version('slimdpm')}",
        "shape": list(shell.shape),
        "image": [shell.image_channels, *sides(shell.image_size)],
        "step": step,
        "scale": 1.0 if shell.autoencoder is None else float(shell.autoencoder.config.scaling_factor),
        **{name: f"{folder}/{place}" for name, folder in parts.items()},
        "condition": _condition(shell),
        "default": {"scheduler": default, "steps": min(map(int, tables[default]), key=lambda n: abs(n - 20))},
    }


def _condition(shell: Shell) -> dict[str, Any] | None:
    """What samples are asked for by, and how strongly by default."""
    conditioning = shell.conditioning
    if isinstance(conditioning, Text):
        told: dict[str, Any] = {"kind": "text", "guidance": float(conditioning.scale)}
        if isinstance(conditioning, Inpainting):
            told["sees"] = "image and mask"
        elif isinstance(conditioning, Editing):
            told |= {"sees": "image", "image_guidance": float(conditioning.image_scale)}
        return told | _of_two_encoders(conditioning, sides(shell.image_size))
    if isinstance(conditioning, ClassLabels):
        names = dict(zip(map(str, conditioning.numbers), conditioning.names or (), strict=False))
        scale = 1.0 if conditioning.null is None else conditioning.scale
        return {
            "kind": "class",
            "rows": conditioning.rows,
            "null": conditioning.null,
            "names": names,
            "guidance": scale,
        }
    return None


def _of_two_encoders(conditioning: Text, size: tuple[int, int]) -> dict[str, Any]:
    """Stable Diffusion XL's, in which diffusers reads the last layer but one of each encoder: the outputs that they
    are, what the U-Net is told of sizes, and whether the null condition is zeros."""
    encoders = text_encoders(conditioning)
    if len(encoders) == 1:
        return {}
    hidden = [f"hidden_states.{encoder.config.num_hidden_layers - 1}" for encoder in encoders.values()]
    return {"hidden": hidden, "time_ids": [*size, 0, 0, *size], "zeros": conditioning.zeros}


def _write_tokenizer(tokenizer: Any, folder: Path, which: str) -> None:
    """For the runner, and as transformers 4 (which optimum is built on) and 5 read it: both read other files."""
    words, own = _words_of(tokenizer), folder / f"tokenizer{which}"
    write_json(folder / f"tokens{which}.json", words)
    tokenizer.save_pretrained(own)
    write_json(own / "vocab.json", words["vocabulary"])
    lines = ["#version: 0.2", *(" ".join(pair) for pair in words["merges"])]
    (own / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _words_of(tokenizer: Any) -> dict[str, Any]:
    """CLIP's vocabulary and merges, whichever of transformers' two kinds of tokenizers holds them."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    merges = (
        json.loads(fast.to_str())["model"]["merges"]
        if fast
        else sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.get)
    )
    return {
        "vocabulary": tokenizer.get_vocab(),
        "merges": [pair.split(" ") if isinstance(pair, str) else list(pair) for pair in merges],
        "length": tokenizer.model_max_length,
        "begin": tokenizer.bos_token_id,
        "end": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
    }


def _index(pipeline: Any, folder: Path) -> dict[str, Any]:
    """As diffusers writes it, of the parts that are there; the U-Net by the class of diffusers that it is one of."""
    found = json.loads(pipeline.to_json_string())
    parts = {name: value for name, value in found.items() if isinstance(value, list) and (folder / name).is_dir()}
    if "unet" in parts:
        known = next(cls for cls in type(pipeline.unet).__mro__ if cls.__module__.startswith("diffusers."))
        parts["unet"] = ["diffusers", known.__name__]
    rest = {name: value for name, value in found.items() if not isinstance(value, list)}
    return {**rest, **parts}


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and digest of what the runner reads."""
    read = [*folder.glob("*/model.onnx*"), *folder.glob("*/openvino_model.*"), *folder.glob("*.json")]
    files = sorted(file for file in read if file.name != "model_index.json")
    return {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": file_digest(file, "sha256")}
        for file in files
    }


_CARD = """# An exported diffusion pipeline

Made by {made}. Images from this folder need neither PyTorch nor slimdpm:

```bash
pip install {runtime} numpy pillow
python generate.py -n 8 --seed 0 {asks}-o images
```

`python generate.py --help` lists the rest. The same seed makes the same images as `slimdpm sample` with the pipeline
that this was exported from. Samplers and numbers of steps: {samplers}.
"""


def _card(manifest: dict[str, Any], tables: dict[str, dict[str, Any]], to: Runtime) -> str:
    condition = manifest["condition"] or {"kind": None}
    asks = {"class": "--class 0 ", "text": '--prompt "..." '}.get(condition["kind"], "")
    asks += {"image": "--image photo.png ", "image and mask": "--image photo.png --mask mask.png "}.get(
        condition.get("sees", ""), ""
    )
    return _CARD.format(
        made=manifest["made by"],
        runtime="onnxruntime" if to == "onnx" else "openvino",
        asks=asks,
        samplers="; ".join(f"{name} ({', '.join(counts)})" for name, counts in tables.items()),
    )

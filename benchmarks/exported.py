"""What leaving PyTorch is worth: a call of each network, and a whole image, in PyTorch and in exported runtimes.

    python benchmarks/exported.py

Teacher, Lite and Spectral of the crops (32×32 pixels, and the shallowest student of equal MACs), the networks of `make
demo`, and the paper's FFHQ preset (LDM-4, 256×256 through its autoencoder), with random weights, batch 1, float32.
PyTorch eager in the faster memory format, ONNX Runtime and OpenVINO; one thread, processor time; those of a family take
turns in one process, and the median counts. Bytes are those of the graph's files, with weights of 32, 16 and 8 bits. A
family that is in the result is not measured again; FFHQ's takes most of the half hour.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from ablation.tables import markdown
from diffusers import DDIMScheduler, DDPMPipeline, LDMPipeline, VQModel
from latency import families

from slimdpm.demo.students import demo_recipe
from slimdpm.export.checks import check_graph
from slimdpm.export.graphs import Graph, graphs_of, to_onnx, to_openvino
from slimdpm.export.runner import networks
from slimdpm.export.storage import Weights, shrink
from slimdpm.method.cost import measure
from slimdpm.method.depth import depths
from slimdpm.method.latency import timings
from slimdpm.method.networks import build
from slimdpm.method.slimming import Budget, plan_student, student_base
from slimdpm.method.timed_plan import widths
from slimdpm.pipelines.shell import shell_of
from slimdpm.system.documents import read_json
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts
from slimdpm.system.packaged import ASSETS

ROUNDS = {"crops": 41, "demo": 41, "ffhq": 5}
STEPS = (20, 50)
RUNTIMES = ("PyTorch", "ONNX Runtime", "OpenVINO")
WIDTHS: tuple[Weights, ...] = ("float32", "float16", "int8")
AUTOENCODER = {  # of LDM-4: vq-f4
    "block_out_channels": (128, 256, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "latent_channels": 3,
    "num_vq_embeddings": 8192,
    "sample_size": 256,
}


def graphs(configs: Mapping[str, Any], family: str) -> dict[str, Graph]:
    """The U-Nets by name; of FFHQ the decoder, too."""
    found: dict[str, Graph] = {}
    for name, config in configs.items():
        torch.manual_seed(0)
        unet, pipeline = build(config).eval(), None
        if family == "ffhq":
            autoencoder = VQModel(**AUTOENCODER).eval()
            # Codes as far apart as a trained book's: a new one's are next to nothing, and drown in rounding.
            torch.nn.init.normal_(autoencoder.quantize.embedding.weight)
            pipeline = LDMPipeline(autoencoder, unet, DDIMScheduler(clip_sample=False))
        pipeline = pipeline or DDPMPipeline(unet, DDIMScheduler())
        for graph in graphs_of(unet, shell_of(pipeline)):
            found[name if graph.name == "unet" else "decoder"] = graph
    return found


def shallow(teacher: Mapping[str, Any], macs: float) -> Mapping[str, Any]:
    """The config of the shallowest student of so many MACs at most, in widths that a budget in time chooses among."""
    shallowest = depths(student_base(teacher, "plain", {}))[-1]
    return max((c for c in widths(shallowest) if measure(c).macs <= macs), key=lambda config: measure(config).macs)


def demo() -> dict[str, Mapping[str, Any]]:
    """The configs of `make demo`; its Lite is the plain student's network."""
    student, teacher = demo_recipe().student, read_json(ASSETS / "garments-teacher-small/unet/config.json")
    budget, found = Budget(ratio=student.ratio), {"teacher": teacher}
    for kind in ("plain", "spectral"):
        found[kind] = plan_student(teacher, budget, kind=kind, overrides=student.overrides).config
    return found


def runtimes(graph: Graph, folder: Path) -> tuple[dict[str, Callable[[], object]], dict[str, Any]]:
    """A call in each runtime; bytes of the files by the width of their weights, and how far ONNX is off PyTorch."""
    inputs = {name: value if name in graph.fixed else value[:1] for name, value in graph.inputs.items()}
    arrays = {name: value.numpy() for name, value in inputs.items()}
    whole, sizes = folder / "model.onnx", {}
    to_onnx(graph, whole)
    for weights in WIDTHS:
        shutil.copyfile(whole, file := folder / "other.onnx")
        shrink(file, weights)
        sizes[weights] = file.stat().st_size
    off = check_graph(graph, whole, "float32")
    onnx = networks(folder, {"graph": whole.name}, 1)("graph")
    (folder / "openvino").mkdir()
    to_onnx(graph, folder / "openvino" / whole.name, portable=True)
    to_openvino(folder / "openvino" / whole.name)
    openvino = networks(folder / "openvino", {"graph": "openvino_model.xml"}, 1)("graph")
    calls: dict[str, Callable[[], object]] = {
        "eager": lambda: graph.module(**inputs),
        "onnx": lambda: onnx(**arrays),
        "openvino": lambda: openvino(**arrays),
    }
    return calls, {"bytes": sizes, "off": off}


def measured(configs: Mapping[str, Any], family: str) -> dict[str, Any]:
    """All networks of a family in all runtimes, which take turns."""
    calls, found, made = {}, {}, graphs(configs, family)
    with tempfile.TemporaryDirectory() as folder:
        for name, graph in made.items():
            (place := Path(folder) / name).mkdir()
            own, found[name] = runtimes(graph, place)
            calls |= {(name, runtime): call for runtime, call in own.items()}
            found[name] |= {"milliseconds": {}, "macs": measure(configs[name]).macs if name in configs else None}
        for layout in (torch.contiguous_format, torch.channels_last):
            for graph in made.values():
                graph.module.to(memory_format=layout)  # type: ignore[call-overload]
            times = timings(calls, torch.device("cpu"), rounds=ROUNDS[family], clock=time.process_time)  # type: ignore[arg-type]
            for (name, runtime), latency in times.items():
                known, now = found[name]["milliseconds"], round(1e3 * latency.median, 3)
                known[runtime] = min(known.get(runtime, now), now)
    return found


def table(results: Mapping[str, Any]) -> str:
    """A row for each network: calls, how many times faster than the eager teacher, megabytes; then whole images."""
    rows, images = [], []
    for family, found in sorted(results["families"].items(), key=lambda item: list(ROUNDS).index(item[0])):
        slowest = found.get("teacher", {}).get("milliseconds", {}).get("eager")
        for name, values in found.items():
            ms, size = values["milliseconds"], values["bytes"]
            best = min(ms.values())
            macs = f"{values['macs'] / 1e6:,.0f}" if values.get("macs") else "–"
            faster = f"{slowest / best:.1f}" if slowest and name != "decoder" else "–"
            megabytes = " / ".join(f"{size[w] / 1e6:,.1f}" for w in WIDTHS)
            rows.append([f"{family}, {name}", macs, *(f"{ms[r]:,.1f}" for r in ms), faster, megabytes])
        for name in (name for name in found if name != "decoder"):
            for runtime in ("eager", "onnx"):
                decoder = found.get("decoder", {}).get("milliseconds", {}).get(runtime, 0.0) / 1e3
                calls = [n * found[name]["milliseconds"][runtime] / 1e3 for n in STEPS]
                cells = [f"{c:,.2f} + {decoder:,.2f} = {c + decoder:,.2f}" for c in calls]
                images.append([f"{family}, {name}, {runtime}", *cells])
    heads = [
        "network",
        "M MACs",
        "eager ms",
        "ONNX Runtime ms",
        "OpenVINO ms",
        "eager teacher ÷ best",
        "MB 32/16/8 bits",
    ]
    whole = ["seconds of an image: U-Net + decoder", *(f"{n} steps" for n in STEPS)]
    return f"{markdown(heads, rows)}\n\n{markdown(whole, images)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/exported.json")
    parser.add_argument("--only", nargs="*", default=list(ROUNDS), help="names of families")
    options = parser.parse_args()
    timed = families()
    configs = {"crops": timed["demo"], "demo": demo(), "ffhq": timed["ffhq"]}
    configs["crops"]["shallow"] = shallow(timed["demo"]["teacher"], measure(timed["demo"]["lite"]).macs)
    results = json.loads(options.output.read_text()) if options.output.exists() else {"families": {}}
    torch.set_num_threads(1)
    for family in options.only:
        if family not in results["families"]:
            results["families"][family] = measured(configs[family], family)
            write_json(options.output, {"hardware": machine_facts(), "threads": 1, "rounds": ROUNDS, **results})
    print(table(results))


if __name__ == "__main__":
    main()

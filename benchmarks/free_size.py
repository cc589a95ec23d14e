"""What graphs that take images of any size cost beside those of one size: a call, the export, bytes.

    python benchmarks/free_size.py

U-Nets of packaged pipelines, batch 1 of their own size, float32, one thread, processor time: ONNX Runtime and OpenVINO.
All graphs of a network take turns in one process, and medians count.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ablation.tables import markdown

from slimdpm.export.checks import check_graph
from slimdpm.export.graphs import Graph, graphs_of, to_onnx, to_openvino
from slimdpm.export.runner import networks
from slimdpm.method.latency import timings
from slimdpm.method.networks import network_config
from slimdpm.pipelines.fitting import size_step
from slimdpm.pipelines.shell import network_of, shell_of
from slimdpm.pipelines.teacher import open_pipeline
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts

RESULTS = Path(__file__).parent / "results/free_size.json"
SOURCES = ("slimdpm:garments-12x", "slimdpm:garments-teacher")
ROUNDS = 201


def exported(graph: Graph, folder: Path) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """A call in each runtime; seconds of the export for ONNX Runtime and the bytes that it wrote."""
    arrays = {n: (value if n in graph.fixed else value[:1]).numpy() for n, value in graph.inputs.items()}
    (folder / "openvino").mkdir(parents=True)
    began = time.process_time()
    to_onnx(graph, folder / "model.onnx")
    facts = {"export, seconds": round(time.process_time() - began, 1), "bytes": (folder / "model.onnx").stat().st_size}
    check_graph(graph, folder / "model.onnx", "float32")
    to_onnx(graph, folder / "openvino/model.onnx", portable=True)
    xml = to_openvino(folder / "openvino/model.onnx").name
    places = {"onnxruntime": (folder, "model.onnx"), "openvino": (folder / "openvino", xml)}
    opened = {runtime: networks(place, {"graph": file}, 1)("graph") for runtime, (place, file) in places.items()}
    return {runtime: lambda run=run: run(**arrays) for runtime, run in opened.items()}, facts  # type: ignore[misc]


def measured(source: str) -> dict[str, Any]:
    pipeline = open_pipeline(source)
    network, shell = network_of(pipeline), shell_of(pipeline)
    steps = {"one size": None, "any size": size_step(shell, network_config(network))}
    calls, found = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, step in steps.items():
            own, found[name] = exported(next(graphs_of(network, shell, step)), Path(folder) / name)
            calls |= {(name, runtime): call for runtime, call in own.items()}
        times = timings(calls, torch.device("cpu"), rounds=ROUNDS, clock=time.process_time)  # type: ignore[arg-type]
    for (name, runtime), latency in times.items():
        found[name][f"{runtime}, ms"] = round(1e3 * latency.median, 3)
    return found


def table(results: dict[str, Any]) -> str:
    rows = []
    for source, found in results["networks"].items():
        for name, values in found.items():
            milliseconds = (f"{values[f'{runtime}, ms']:.2f}" for runtime in ("onnxruntime", "openvino"))
            rows.append([source, name, *milliseconds, f"{values['export, seconds']:.0f}", f"{values['bytes']:,}"])
    return markdown(["network", "graph", "ONNX Runtime, ms", "OpenVINO, ms", "export, s", "bytes"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    output = parser.parse_args().output
    torch.set_num_threads(1)
    results = json.loads(output.read_text()) if output.exists() else {"networks": {}}
    for source in SOURCES:
        if source not in results["networks"]:
            results["networks"][source] = measured(source)
            write_json(output, {**results, "hardware": machine_facts(), "rounds": ROUNDS})
    print(table(results))


if __name__ == "__main__":
    main()

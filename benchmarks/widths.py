"""What a number of channels costs beside its multiply-adds: students of one depth and neighbouring widths.

    python benchmarks/widths.py

Plain students of the package's teacher of garments, random weights, batch 1, float32, one thread, processor time: eager
PyTorch in the faster memory format, ONNX Runtime, OpenVINO. Within a runtime they take turns, and medians count. A
runtime that is in the result is not measured again. `slimdpm.method.widths.VECTOR` follows from it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ablation.tables import markdown

from slimdpm.method.cost import measure
from slimdpm.method.latency import brief_latencies, random_network
from slimdpm.method.runtimes import ONNX, OPENVINO, PYTORCH, RUNTIMES, exported_call, exported_latencies
from slimdpm.method.slimming import student_base
from slimdpm.method.widths import VECTOR
from slimdpm.system.documents import read_json
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts
from slimdpm.system.packaged import ASSETS

RESULTS = Path(__file__).parent / "results/widths.json"
WIDTHS = (  # with their norm groups
    ((12, 15, 24), 1), ((12, 16, 24), 2), ((16, 18, 32), 2), ((16, 20, 32), 4), ((16, 22, 32), 2), ((16, 24, 32), 4),
    ((16, 30, 32), 2), ((16, 32, 32), 4), ((17, 30, 48), 1), ((20, 32, 48), 4),
)  # fmt: skip
ROUNDS = 101
SECONDS = 60  # of PyTorch's, about


def configs() -> dict[str, Mapping[str, Any]]:
    base = student_base(read_json(ASSETS / "garments-teacher/unet/config.json"), "plain", {})
    return {
        "-".join(map(str, channels)): {**base, "block_out_channels": list(channels), "norm_num_groups": groups}
        for channels, groups in WIDTHS
    }


def milliseconds(runtime: str) -> dict[str, float]:
    networks = {name: random_network(config, torch.device("cpu")) for name, config in configs().items()}
    if runtime == PYTORCH:
        seconds = brief_latencies(networks, seconds=SECONDS, clock=time.process_time)
    else:
        calls = {name: exported_call(network, runtime) for name, network in networks.items()}
        found = exported_latencies(calls, ROUNDS, clock=time.process_time)
        seconds = {name: latency.median for name, latency in found.items()}
    return {name: round(1e3 * value, 3) for name, value in seconds.items()}


def table(results: Mapping[str, Any]) -> str:
    rows = []
    for name, found in results["networks"].items():
        vectors = "yes" if found["in vectors"] else "no"
        times = [f"{found['milliseconds'][runtime]:.2f}" for runtime in results["runtimes"]]
        rows.append([name, vectors, f"{found['macs'] / 1e6:.1f} M", *times])
    heads = ["channels", "multiples of 4", "MACs", *(f"{RUNTIMES[runtime]}, ms" for runtime in results["runtimes"])]
    return markdown(heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    output = parser.parse_args().output
    torch.set_num_threads(1)
    results = json.loads(output.read_text()) if output.exists() else {"runtimes": [], "networks": {}}
    for name, config in configs().items():
        vectors = not any(channels % VECTOR for channels in config["block_out_channels"])
        results["networks"].setdefault(name, {"macs": measure(config).macs, "in vectors": vectors, "milliseconds": {}})
    for runtime in (PYTORCH, ONNX, OPENVINO):
        if runtime not in results["runtimes"]:
            for name, value in milliseconds(runtime).items():
                results["networks"][name]["milliseconds"][runtime] = value
            results["runtimes"].append(runtime)
            write_json(output, {"hardware": machine_facts(), "threads": 1, "rounds": ROUNDS, **results})
    print(table(results))


if __name__ == "__main__":
    main()

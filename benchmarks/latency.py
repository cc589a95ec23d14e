"""Milliseconds of one denoising step: teachers beside their Lite and Spectral students.

    python benchmarks/latency.py

Three families: the demo's, the ablation's (garments at 32×32) and the paper's for FFHQ (LDM-4), with random weights,
in float32; batches of 1 and 8; weights as they are built and in channels-last order. The networks of a family take
turns in one process, and the median counts. Processor time of one thread, and wall-clock time with two. What is in the
result already is not measured again, so the script can be stopped and started; the FFHQ networks take most of its hour.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ablation.grid import DENSE_MIXED
from ablation.sizes import SIZES
from ablation.tables import markdown
from crops import crops_recipe

from slimdpm.method.cost import measure
from slimdpm.method.latency import latencies
from slimdpm.method.networks import build
from slimdpm.method.presets import find_network
from slimdpm.method.slimming import Budget, plan_student
from slimdpm.system.documents import read_json
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts
from slimdpm.system.packaged import ASSETS

BATCHES = (1, 8)
CLOCKS = {  # the second one wants a machine that is idle otherwise
    "one thread, processor time": (1, time.process_time),
    "two threads, wall clock": (2, time.perf_counter),
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SHAPE = {"norm_num_groups": 4, "attention_head_dim": 8}  # of the ablation's students
SECONDS = 60  # spent on a family, batch and clock, about; of each network 3 rounds at least and 41 at most


def families() -> dict[str, dict[str, Mapping[str, Any]]]:
    """Configs of teacher, Lite and Spectral."""
    demo = read_json(ASSETS / "demo-teacher/unet/config.json")
    garments = read_json(Path(__file__).parent / "teachers/clothing-32/unet/config.json")
    budget, size = Budget(ratio=crops_recipe().student.ratio), SIZES["32"]
    found = {"ffhq": {name: find_network(f"ldm4{end}").config for name, end in ENDS.items()}}
    for family, teacher in (("demo", demo), ("garments", garments)):
        found[family] = {"teacher": teacher}
        for kind in ("lite", "spectral"):
            overrides = dict(DENSE_MIXED) if kind == "spectral" else {}
            if family == "garments":
                overrides |= {"block_out_channels": list(size.widths[kind][size.main]), **SHAPE}
            found[family][kind] = plan_student(teacher, budget, kind=kind, overrides=overrides).config
    return {family: found[family] for family in ("demo", "garments", "ffhq")}


ENDS = {"teacher": "", "lite": "-lite", "spectral": "-spectral"}


def time_family(configs: Mapping[str, Any], batch: int, clock: str) -> dict[str, dict[str, float]]:
    """Milliseconds by network and layout."""
    threads, function = CLOCKS[clock]
    torch.set_num_threads(threads)
    networks = {
        (name, layout): build(config).eval().to(memory_format=order)
        for name, config in configs.items()
        for layout, order in LAYOUTS.items()
    }
    start = function()
    latencies(networks, rounds=1, batch=batch)
    rounds = min(41, max(3, round(2 * SECONDS / (function() - start))))
    seconds = latencies(networks, rounds=rounds, batch=batch, clock=function)
    found: dict[str, dict[str, float]] = {name: {} for name in configs}
    for (name, layout), value in seconds.items():
        found[name][layout] = round(1000 * value, 3)
    return {"rounds": rounds, **found}


def table(results: Mapping[str, Any]) -> str:
    """A row for each network; contiguous / channels-last milliseconds for each batch and clock."""
    measured = {column for found in results["families"].values() for column in found["milliseconds"]}
    columns = [c for clock in CLOCKS for batch in BATCHES if (c := f"{clock}, batch {batch}") in measured]
    rows = []
    for family, found in results["families"].items():
        for name, cost in found["networks"].items():
            row = [f"{family}, {name}", f"{cost['params'] / 1e6:.2f}", f"{cost['macs'] / 1e6:,.1f}"]
            for column in columns:
                times = found["milliseconds"].get(column, {}).get(name)
                row.append(" / ".join(_digits(times[layout]) for layout in LAYOUTS) if times else "–")
            rows.append(row)
    return markdown(["network", "M parameters", "M MACs", *columns], rows)


def _digits(milliseconds: float) -> str:
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/latency.json")
    parser.add_argument("--only", nargs="*", help="names of families")
    parser.add_argument("--busy", action="store_true", help="the machine has other work: processor time alone")
    options = parser.parse_args()
    results = json.loads(options.output.read_text()) if options.output.exists() else {"families": {}}
    torch.manual_seed(0)
    for family, configs in families().items():
        if options.only and family not in options.only:
            continue
        costs = {name: vars(measure(config)) for name, config in configs.items()}
        found = results["families"].setdefault(family, {"networks": costs, "milliseconds": {}})
        for clock in list(CLOCKS)[: 1 if options.busy else None]:
            for batch in BATCHES:
                if (column := f"{clock}, batch {batch}") not in found["milliseconds"]:
                    found["milliseconds"][column] = time_family(configs, batch, clock)
                    write_json(options.output, {"hardware": machine_facts(), **results})
    print(table(results))


if __name__ == "__main__":
    main()

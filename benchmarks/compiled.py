"""What `slimdpm sample --compile` brings and what it costs to warm up, on a CPU.

    python benchmarks/compiled.py

The package's teacher of garments and its 12 times smaller student: one call of the network for batches of 1 and 16,
float32, one thread, processor time, as sampling calls it without `--compile` and with it. All take turns in a process,
and medians count. Warming up is what the first call of the compiled network takes, with nothing compiled before.
Saves compiled.json.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from ablation.tables import markdown

from slimdpm.method.latency import timings
from slimdpm.method.networks import call, example_inputs
from slimdpm.pipelines.compiled import Compiled
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.pipelines.sampling import as_they_sample
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts

RESULTS = Path(__file__).parent / "results/compiled.json"
NETWORKS = {"teacher": "slimdpm:garments-teacher", "student": "slimdpm:garments-12x"}
BATCHES = (1, 16)
ROUNDS = 31


def measured() -> dict[str, Any]:
    device, networks, warm_up = torch.device("cpu"), {}, {}
    unets = {name: load_pipeline(place).unet for name, place in NETWORKS.items()}
    with as_they_sample(*unets.values()):
        for name, unet in unets.items():
            compiled = Compiled(unet, lambda line: None)
            calls = {
                (how, batch): _called(network, unet, batch)
                for how, network in (("eager", unet), ("compiled", compiled))
                for batch in BATCHES
            }
            with torch.inference_mode():
                start = time.perf_counter()
                calls["compiled", max(BATCHES)]()
                warm_up[name] = time.perf_counter() - start
            found = timings(calls, device, rounds=ROUNDS, clock=time.process_time)
            networks[name] = {
                f"batch {batch}": {how: 1000 * found[how, batch].median for how in ("eager", "compiled")}
                for batch in BATCHES
            }
    return {"hardware": machine_facts(), "rounds": ROUNDS, "warm-up, seconds": warm_up, "milliseconds": networks}


def _called(network: Any, unet: torch.nn.Module, batch: int) -> Callable[[], object]:
    inputs = example_inputs(unet.config, batch=batch)
    sample, t = inputs.pop("sample"), inputs.pop("timestep")[0]
    return lambda: call(network, sample, t, inputs)


def table(found: Mapping[str, Any]) -> str:
    columns = [f"{how}, batch {batch}, ms" for batch in BATCHES for how in ("eager", "compiled")]
    heads = ["network", *columns, "to compile"]
    rows = []
    for name, times in found["milliseconds"].items():
        cells = [f"{times[f'batch {batch}'][how]:.1f}" for batch in BATCHES for how in ("eager", "compiled")]
        rows.append([name, *cells, f"{found['warm-up, seconds'][name]:.0f} s"])
    return markdown(heads, rows)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        found = measured()
    write_json(RESULTS, found)
    print(table(found))


if __name__ == "__main__":
    main()

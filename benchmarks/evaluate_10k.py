"""Evaluate 10,000 images of 64×64: is memory flat, does a kill repeat nothing, do two processes give the same numbers?

    python benchmarks/evaluate_10k.py RUN PHOTOS --work runs/10k --output benchmarks/results

RUN is a run or pipeline of 64×64 pixels; few sampling steps will do. First `slimdpm evaluate` alone, killed (SIGKILL)
at 40 % and started again; then the same in two processes, all with one thread. Saves evaluate_10k.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts


def shards(folder: Path, name: str) -> dict[str, int]:
    """The finished shards of features, and when each was written (nanoseconds)."""
    return {f.name: f.stat().st_mtime_ns for f in folder.glob(f"{name}-*/efficientnet-lite0/*.npz") if f.name[0] != "."}


def watch(process: subprocess.Popen, folder: Path, name: str, total: int, kill_at: float | None) -> list[list[float]]:
    """(share of the shards done, MiB resident) while the process collects; SIGKILL at a share."""
    seen = []
    while process.poll() is None:
        done = len(shards(folder, name)) / total
        try:
            seen.append([round(done, 3), round(psutil.Process(process.pid).memory_info().rss / 2**20)])
        except psutil.NoSuchProcess:
            break
        if kill_at is not None and done >= kill_at:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return seen
        time.sleep(2)
    return seen


def numbers(folder: Path) -> dict:
    found = json.loads((folder / "results.json").read_text())
    return {key: found[key] for key in ("models", "floor")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run")
    parser.add_argument("photos")
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/10k"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # a convolution's rounding depends on how many threads share it
    name, total = Path(options.run).name, -(-options.n // 64)
    command = [sys.executable, "-m", "slimdpm.cli", "evaluate", options.run, "--against", options.photos]
    command += ["-n", str(options.n), "--steps", str(options.steps), "--scheduler", "dpm++", "--device", "cpu"]
    command += ["--extractor", "efficientnet-lite0", "-o"]
    one, two = options.work / "one", options.work / "two"
    start = time.monotonic()
    first = watch(subprocess.Popen([*command, str(one)]), one, name, total, 0.4)
    before = shards(one, name)
    second = watch(subprocess.Popen([*command, str(one)]), one, name, total, None)
    after = shards(one, name)
    seconds = time.monotonic() - start
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    pair = [
        subprocess.Popen([*command, str(two)], env={**os.environ, **shared, "RANK": r, "LOCAL_RANK": r})
        for r in ("0", "1")
    ]
    codes = [process.wait() for process in pair]
    collecting = [m for done, m in second if 0.45 <= done < 1]
    result = {
        "images": options.n,
        "sampling_steps": options.steps,
        "seed": 0,
        "seconds_alone": round(seconds),
        "shards_before_the_kill": len(before),
        "of_them_made_again": sum(after[shard] != when for shard, when in before.items()),
        "resident_MiB_while_collecting": {"first fifth": None, "last fifth": None},
        "resident_MiB": {"before the kill": first[-1:], "after": second[:: max(1, len(second) // 20)]},
        "two_processes": {"exit_codes": codes, "same_numbers": numbers(one) == numbers(two)},
        "hardware": machine_facts(),
    }
    fifth = max(1, len(collecting) // 5)
    flat = result["resident_MiB_while_collecting"]
    flat["first fifth"], flat["last fifth"] = max(collecting[:fifth]), max(collecting[-fifth:])
    write_json(options.output / "evaluate_10k.json", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

"""Run inputs of a seed, print a table by kind, keep the folders of those that are at fault."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from .case import KINDS, drawn
from .runner import Result, run_all, warm

SORTS = ("executed", "wrong", "refused", "hang", "crash", "traceback", "message", "generator")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--kind", help="only inputs that the seed draws of this kind")
    parser.add_argument("--replay", type=int, nargs="+", help="these inputs alone; their folders are kept if at fault")
    parser.add_argument("--quick", action="store_true", help="kinds and commands of a fraction of a second")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the inputs and the result")
    options = parser.parse_args()
    place = options.output.resolve()
    place.mkdir(parents=True, exist_ok=True)
    decoys(place / "programs")
    warm()
    indices = options.replay or range(options.first, options.first + options.count)
    indices = [i for i in indices if options.kind is None or drawn(options.seed, i, options.quick)[0] == options.kind]
    started = time.monotonic()
    results = []
    with (place / "faults.jsonl").open("w") as faults:
        for result in run_all(options.seed, indices, place, workers=options.workers, quick=options.quick):
            results.append(result)
            if result.fault:
                faults.write(json.dumps(asdict(result)) + "\n")
                faults.flush()
                print(f"{options.seed}-{result.index} {result.kind}: {result.fault[:200]}")
    seconds = time.monotonic() - started
    tell(results, seconds)
    write(place / "result.json", results, options.seed, seconds)
    return any(result.fault for result in results)


def decoys(folder: Path) -> None:
    """Programs that a library might start, each leaving the canary."""
    folder.mkdir(exist_ok=True)
    for name in ("gs", "gswin64c", "ffmpeg", "convert", "dvipng", "latex"):
        (folder / name).write_text('#!/bin/sh\ntouch "$FUZZ_CANARY-$(basename "$0")"\n')
        (folder / name).chmod(0o755)


def by_kind(results: list[Result]) -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, float]] = {}
    for name in sorted(KINDS):
        of_it = [result for result in results if result.kind == name]
        if of_it:
            sorts = Counter((result.fault or "").split(":")[0] for result in of_it)
            codes = Counter(result.code for result in of_it)
            table[name] = {"inputs": len(of_it), "refused with one line": codes[2], "worked": codes[0]}
            table[name] |= {sort: sorts[sort] for sort in SORTS}
            table[name]["seconds"] = round(sum(result.seconds for result in of_it), 1)
    return table


def tell(results: list[Result], seconds: float) -> None:
    table = by_kind(results)
    columns = ["inputs", "worked", *SORTS, "seconds"]
    print(f"{'kind':28}" + "".join(f"{column:>10}" for column in columns))
    total = {column: sum(row[column] for row in table.values()) for column in columns}
    for name, row in [*table.items(), ("all", total)]:
        print(f"{name:28}" + "".join(f"{row[column]:>10g}" for column in columns))
    print(f"{len(results)} inputs, {sum(bool(r.fault) for r in results)} faults, {seconds:.0f} s", file=sys.stdout)


def write(file: Path, results: list[Result], seed: int, seconds: float) -> None:
    from importlib.metadata import version

    names = (
        "torch",
        "diffusers",
        "transformers",
        "pillow",
        "numpy",
        "safetensors",
        "pydantic",
        "PyYAML",
        "onnxruntime",
    )
    table = by_kind(results)
    faults = {sort: int(sum(row[sort] for row in table.values())) for sort in SORTS}
    values = {
        "seed": seed,
        "inputs": len(results),
        "faults": faults,
        "seconds": round(seconds),
        "slowest input, seconds": round(max((r.seconds for r in results), default=0), 1),
        "largest input, GB": round(max((r.memory for r in results), default=0), 2),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in names}},
        "kinds": table,
    }
    file.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())

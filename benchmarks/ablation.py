"""Each part of the method by itself, at equal cost and equal training: the figures of docs/ablation.md.

    python benchmarks/ablation.py clothing-64.npz --size 32 --work runs/ablation-32 --output benchmarks/results

`slimdpm reproduce ablation` with the results copied to where the docs find them. On two CPU cores: about an hour for
the teacher, and hours for the grid; start the command twice, the second one shares the work. It can be stopped and
started at any time, in pieces of any length (`timeout -s TERM 540 python ...`). With a GPU: --size 64.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from slimdpm.ablation.run import Ablation
from slimdpm.ablation.tables import markdown, rows
from slimdpm.display import Display
from slimdpm.files import write_json, write_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data")
    parser.add_argument("--size", default="32")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--group", action="append", help="only these cells; may be repeated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--latency", action="store_true", help="time the networks too, on an idle machine")
    parser.add_argument("--report", action="store_true", help="no training: the results and pictures of what is there")
    options = parser.parse_args()
    ablation = Ablation(options.size, options.data, options.work, range(options.seeds), Display(Console()))
    if options.latency:
        ablation.measure_latency()
    results = ablation.results() if options.report else ablation.run(options.group)
    name = f"ablation_{options.size}"
    write_json(options.output / f"{name}.json", results)
    write_text(options.output / f"{name}.md", markdown(*rows(results)))
    ablation.pictures(options.output, name)
    print(json.dumps(results["facts"], indent=2))
    print(markdown(*rows(results)))


if __name__ == "__main__":
    main()

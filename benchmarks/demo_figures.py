"""The docs' picture and figures of the demo, from the folder of a demo.

    slimdpm demo -o demo
    python benchmarks/demo_figures.py demo

Writes ``docs/figures/demo.png`` and ``benchmarks/results/demo.json``, and prints the table for the docs.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablation.tables import markdown

from slimdpm.system import amounts
from slimdpm.system.files import write_json

HERE = Path(__file__).parent


def table(results: Mapping[str, Any]) -> str:
    """A row for each network, and what the classifier says of photographs."""
    rows = []
    for name, row in results["networks"].items():
        trained = "–" if row["steps"] is None else f"{row['steps']:,} / {row['seconds']:.0f} s"
        cost = amounts.parameters(row["params"]), amounts.macs(row["macs"]), f"{row['milliseconds']:.1f}"
        errors = f"{row['error']:.4f}", f"{row['upper half']:.4f}"
        distance = f"{row['kernel distance']:.3f} ± {row['its standard error']:.3f}"
        rows.append([name, *cost, trained, *errors, distance, f"{row['named']:.0%}"])
    rows.append(["photographs", *["–"] * 7, f"{results['photographs']['named']:.0%}"])
    headings = [
        "",
        "parameters",
        "MACs",
        "ms",
        "training",
        "error of ε",
        "upper half",
        "kernel distance",
        "class named",
    ]
    return markdown(headings, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="of the demo")
    options = parser.parse_args()
    results = json.loads((options.folder / "results.json").read_text())
    write_json(HERE / "results/demo.json", results)
    shutil.copyfile(options.folder / "comparison.png", HERE.parent / "docs/figures/demo.png")
    print(table(results))
    print(f"{results['samples']}; errors and kernel distance on {results['photographs to measure with']} photographs")


if __name__ == "__main__":
    main()

"""The docs' picture and figures of the demo, from the folder of a demo.

    slimdpm demo -o demo
    slimdpm demo --seed 1 -o demo-1
    python benchmarks/demo_figures.py demo --more demo-1

Writes ``docs/figures/demo.png`` and ``benchmarks/results/demo.json``, prints the table for the docs. What other seeds
give, as ratios to the Lite of each, goes into ``demo_seeds.json``, the first folder's before them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablation.tables import markdown

from slimdpm.demo.run import APART, results_table
from slimdpm.system.files import write_json

MEASURES = ("error", "upper half", "kernel distance", "named", APART)
HERE = Path(__file__).parent


def beside_lite(networks: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Each measure of the distilled students over Lite's."""
    return {
        name: {what: round(networks[name][what] / networks["lite"][what], 4) for what in MEASURES}
        for name in ("spectral", "plain")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="of the demo")
    parser.add_argument("--more", type=Path, nargs="+", default=[], help="folders of demos of other seeds")
    options = parser.parse_args()
    results = json.loads((options.folder / "results.json").read_text())
    write_json(HERE / "results/demo.json", results)
    shutil.copyfile(options.folder / "comparison.png", HERE.parent / "docs/figures/demo.png")
    if options.more:
        seeds = [results, *(json.loads((folder / "results.json").read_text()) for folder in options.more)]
        write_json(HERE / "results/demo_seeds.json", found := [beside_lite(each["networks"]) for each in seeds])
        print(json.dumps(found, indent=1))
    table = results_table(results["networks"], results["photographs"]["named"])
    print(markdown(table.headings, [[cell or "–" for cell in row] for row in table.rows]))
    print(f"{results['samples']}; errors and kernel distance on {results['photographs to measure with']} photographs")


if __name__ == "__main__":
    main()

"""The docs' picture and figures of the demo, from the folder of a demo.

    slimdpm demo -o demo
    python benchmarks/demo_figures.py demo

Writes ``docs/figures/demo.png`` and ``benchmarks/results/demo.json``, and prints the table for the docs.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from ablation.tables import markdown

from slimdpm.demo.run import results_table
from slimdpm.system.files import write_json

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="of the demo")
    options = parser.parse_args()
    results = json.loads((options.folder / "results.json").read_text())
    write_json(HERE / "results/demo.json", results)
    shutil.copyfile(options.folder / "comparison.png", HERE.parent / "docs/figures/demo.png")
    table = results_table(results["networks"], results["photographs"]["named"])
    print(markdown(table.headings, [[cell or "–" for cell in row] for row in table.rows]))
    print(f"{results['samples']}; errors and kernel distance on {results['photographs to measure with']} photographs")


if __name__ == "__main__":
    main()

"""Each part of the method by itself, at equal cost and equal training: the figures of docs/findings.md.

    python benchmarks/ablation.py clothing-64.npz --size 32 --work runs/ablation-32

Its parts are in `ablation/`, the ideas on trial in ablation_ideas.py; the results are left where the docs find
them. It can be stopped and started at any time, in pieces of any length (`timeout -s TERM 540 python ...`); started
twice, the two share the work. The teacher lies in benchmarks/teachers and is trained anew if --teacher is none: 80
minutes on one CPU core. --known takes the cells that the committed results have as done. With a GPU: --size 64.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ablation.run import Ablation, kept_teacher
from ablation.tables import page
from ablation_ideas import idea_cells
from rich.console import Console

from slimdpm.system.files import write_json, write_text
from slimdpm.system.progress import Display

HERE = Path(__file__).parent


def main() -> None:
    options = _options()
    teacher = Path(options.teacher) if options.teacher else kept_teacher(options.size)
    ablation = Ablation(
        options.size,
        options.data,
        options.work,
        range(options.seeds),
        Display(Console()),
        teacher=None if options.teacher == "none" else teacher,
        more=idea_cells(),
    )
    name = f"ablation_{options.size}"
    if options.known:
        ablation.take(options.output / f"{name}.json")
    if options.latency:
        ablation.measure_latency()
    results = ablation.results() if options.report else ablation.run(options.group)
    tables = page(results)
    write_json(options.output / f"{name}.json", results)
    write_text(options.output / f"{name}.md", tables)
    ablation.pictures(options.output, name)
    print(json.dumps(results["facts"], indent=2))
    print(tables)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data")
    parser.add_argument("--size", default="32")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--teacher", help="its folder; none: train it; by default the one in benchmarks/teachers")
    parser.add_argument("--known", action="store_true", help="take over the results that lie in --output")
    parser.add_argument("--group", action="append", help="only these cells; may be repeated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--latency", action="store_true", help="time the networks too, on an idle machine")
    parser.add_argument("--report", action="store_true", help="no training: the results and pictures of what is there")
    return parser.parse_args()


if __name__ == "__main__":
    main()

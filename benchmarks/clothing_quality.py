"""Teacher, Lite and Spectral student of benchmarks/clothing.py judged together: evaluate --compare, and analyze.

    python benchmarks/clothing_quality.py PHOTOS --work runs/clothing --output benchmarks/results

After benchmarks/clothing.py with the same PHOTOS, scale and work folder. Trains the Lite baseline with the student's
settings (equal steps, batch, learning rate and MACs), measures 512 images of each network against the training
photographs, and adds the analysis to the student's report. It resumes. Saves clothing_quality.json and the figures of
the analysis.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from clothing import COMMON, SIZES, run, sets

from slimdpm.system.files import write_json

FIGURES = ("data", "theory", "denoiser", "sizes", "gates")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--scale", choices=SIZES, default="cpu")
    parser.add_argument("--work", type=Path, default=Path("runs/clothing"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("-n", type=int, default=512)
    options = parser.parse_args()
    _, steps, settings, student_settings = SIZES[options.scale]
    work = options.work
    values = {k: v for k, v in {**COMMON, **settings, **student_settings}.items() if not k.startswith("distill.")}
    like = ["--like", work / "teacher", "--ratio", 12, "--steps", steps]
    run("train", options.photos, "-o", work / "lite", *like, *sets(values))
    networks = [work / name for name in ("lite", "student", "teacher")]
    sampler = ["--steps", 20, "--scheduler", "dpm++", "--extractor", "efficientnet-lite0"]
    evaluation = work / "evaluation"
    run("evaluate", "--compare", *networks, "--against", options.photos, "-n", options.n, *sampler, "-o", evaluation)
    shown = ["--compare", work / "lite", "--scheduler", "dpm++"]
    run("analyze", work / "student", "--against", options.photos, *shown)
    result = json.loads((evaluation / "results.json").read_text())
    write_json(options.output / "clothing_quality.json", {"scale": options.scale, "student_steps": steps, **result})
    for name in FIGURES:
        shutil.copy(work / "student" / "analysis" / f"{name}.png", options.output / f"clothing_{name}.png")


if __name__ == "__main__":
    main()

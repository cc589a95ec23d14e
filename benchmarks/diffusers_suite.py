"""diffusers' own tests of its U-Nets, run on ours.

    pip install parameterized peft requests_mock transformers
    python benchmarks/diffusers_suite.py PATH_TO_A_CLONE_OF_DIFFUSERS

Runs test_models_unet_2d.py and test_models_unet_2d_condition.py of the clone twice: as they are, and with
`UNet2DModel` and `UNet2DConditionModel` standing for our subclasses. Saves how many passed, and which fail with ours
only. The clone is read, the diffusers that is tested against is the one installed. Takes a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from slimdpm.system.files import write_json

FILES = ("test_models_unet_2d.py", "test_models_unet_2d_condition.py")
PLUGIN = """
import diffusers
import slimdpm
diffusers.UNet2DModel = slimdpm.SpectralUNet2DModel
diffusers.UNet2DConditionModel = slimdpm.SpectralUNet2DConditionModel
"""


def outcomes(clone: Path, ours: bool) -> dict[str, str]:
    """What became of each test."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "ours_for_theirs.py").write_text(PLUGIN)
        report = Path(folder, "report.xml")
        arguments = ["-q", "-n", "2", "-p", "no:cacheprovider", f"--junitxml={report}"]
        if ours:
            arguments += ["-p", "ours_for_theirs"]
        tests = [str(clone / "tests" / "models" / "unets" / name) for name in FILES]
        environment = {**os.environ, "PYTHONPATH": folder, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", *arguments, *tests]
        if (
            subprocess.run(command, env=environment, cwd=clone).returncode > 1
            or "collection failure" in Path(report).read_text()
        ):
            raise SystemExit("the tests could not be collected, see above")
        found = {}
        for case in ElementTree.parse(report).iter("testcase"):
            kinds = {child.tag for child in case}
            outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
            found[f"{case.get('classname')}.{case.get('name')}"] = outcome
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("clone", type=Path)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/diffusers_suite.json"))
    options = parser.parse_args()
    theirs, ours = (outcomes(options.clone.resolve(), ours) for ours in (False, True))
    count = {
        name: {kind: list(found.values()).count(kind) for kind in ("passed", "skipped", "failed")}
        for name, found in (("diffusers' classes", theirs), ("slimdpm's classes", ours))
    }
    only_ours = sorted(name for name, outcome in ours.items() if outcome == "failed" and theirs.get(name) != "failed")
    failing = sorted(name for name, outcome in theirs.items() if outcome == "failed")
    result = {
        "diffusers installed": version("diffusers"),
        **count,
        "fail with both": failing,
        "fail with ours only": only_ours,
    }
    write_json(options.output, result)
    for name, numbers in count.items():
        print(name, numbers)
    print("failing with ours only:", ", ".join(only_ours) or "none")


if __name__ == "__main__":
    main()

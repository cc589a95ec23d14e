"""Malformed inputs of each quick kind of the generator in `fuzz`: none runs, none hangs, each refusal is one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SEED, COUNT, KINDS = 1546, 150, 49  # a seed that draws each of these kinds among so few


def test_malformed_inputs(tmp_path):
    drawing = ["--quick", "--seed", str(SEED), "--count", str(COUNT)]
    command = [sys.executable, "-m", "tests.fuzz", *drawing, "-o", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=3600, env=environment
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["inputs"], len(result["kinds"])) == (COUNT, KINDS) and not any(result["faults"].values())

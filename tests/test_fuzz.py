"""Three hundred malformed inputs of the generator in `fuzz`: none runs, none hangs, each refusal is one line."""

import json
import sys
from pathlib import Path

import pytest
from helpers import Forked

pytestmark = pytest.mark.slow


def test_malformed_inputs(tmp_path):
    def generate():
        sys.dont_write_bytecode = True  # it would be a file outside of an input's folder
        sys.path.insert(0, str(Path(__file__).parents[1]))
        sys.argv = ["fuzz", "--quick", "--seed", "17", "--count", "300", "-o", str(tmp_path)]
        from tests.fuzz.__main__ import main

        sys.exit(main())

    done = Forked(generate).wait()
    assert done.code == 0, done.out[-6000:] + done.err[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["inputs"] == 300 and not any(result["faults"].values())

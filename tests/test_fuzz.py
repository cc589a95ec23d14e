"""Malformed inputs of each quick kind of the generator in `fuzz`: none runs, none hangs, each refusal is one line."""

import json
import sys

import pytest
from helpers import Forked

pytestmark = pytest.mark.slow
SEED, COUNT, KINDS = 1546, 150, 49  # a seed that draws each of these kinds among so few


def test_malformed_inputs(tmp_path):
    def search():
        from fuzz.__main__ import main

        sys.argv = ["fuzz", "--quick", "--seed", str(SEED), "--count", str(COUNT), "-o", str(tmp_path)]
        sys.exit(main())

    done = Forked(search).wait()
    assert done.code == 0, done.out[-6000:] + done.err[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["inputs"], len(result["kinds"])) == (COUNT, KINDS) and not any(result["faults"].values())

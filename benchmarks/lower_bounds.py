"""Print the lower bound of every dependency in pyproject.toml as an exact version, for pip.

pip install $(python benchmarks/lower_bounds.py)
"""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
wanted = list(project["dependencies"])
wanted += [requirement for name in ("crops", "datasets", "metrics", "onnx", "text") for requirement in extras[name]]
wanted += [r for r in extras["dev"] if not r.startswith(("slimdpm", "mypy", "ruff", "types-"))]
print(*(requirement.replace(">=", "==") for requirement in wanted))

"""Put a trained teacher into the package at half precision.

slimdpm train --recipe recipes/demo-teacher.yaml -o runs/demo-teacher
python benchmarks/pack_demo_teacher.py runs/demo-teacher
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch

from slimdpm.pipelines.loading import ASSETS, load_pipeline
from slimdpm.system.files import atomic_folder

pipeline = load_pipeline(Path(sys.argv[1]) / "student")
pipeline.unet.to(torch.float16)
target = ASSETS / "demo-teacher"
shutil.rmtree(target, ignore_errors=True)
with atomic_folder(target) as temporary:
    pipeline.save_pretrained(temporary)
    for file in temporary.rglob("*.json"):  # without the folder that it came from
        values = {k: v for k, v in json.loads(file.read_text()).items() if k != "_name_or_path"}
        file.write_text(json.dumps(values, indent=2) + "\n")
size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
print(f"{target.name}: {size / 1e6:.2f} MB")

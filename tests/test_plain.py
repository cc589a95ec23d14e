"""Plain students: distilled without gates, they load where slimdpm is not installed."""

import re
import sys

import diffusers
import numpy as np
import plain_diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, LDMPipeline, UNet2DConditionModel, UNet2DModel, VQModel
from helpers import TINY, Forked, class_pipeline, latent_pipeline, text_pipeline
from safetensors.torch import load_file

from slimdpm import Arrays, load_pipeline, slim

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_figures")]

SETTINGS = {
    "train.batch_size": 2, "train.trackers": [], "train.sample_every": 0, "samples.count": 2, "samples.steps": 2,
    "data.workers": 0,
}  # fmt: skip
STUDENTS = {
    "pixels": (lambda folder: DDPMPipeline(UNet2DModel(**TINY), DDIMScheduler()), UNet2DModel),
    "latents": (lambda folder: latent_pipeline(VQModel), UNet2DModel),
    "text": (text_pipeline, UNet2DConditionModel),
    "class": (lambda folder: class_pipeline(), UNet2DModel),
}


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """A folder with a student of each kind, and what `slim` gave back."""
    torch.manual_seed(0)
    root, given = tmp_path_factory.mktemp("plain"), {}
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    data = Arrays(images, classes=np.arange(3), texts=np.array(["a", "b", "a"]))
    for name, (make, _) in STUDENTS.items():
        run = root / "runs" / name
        given[name] = slim(
            make(tmp_path_factory.mktemp(name)), data, output=run, width=8, steps=1, progress=False,
            settings=SETTINGS,
        )  # fmt: skip
        (run / "student").rename(root / name)
    return root, given


def test_a_plain_student_is_a_network_of_diffusers_and_its_papers_say_so(students):
    root, given = students
    for name, (_, network) in STUDENTS.items():
        assert type(given[name].unet) is network
        assert "kind: plain" in (root / "runs" / name / "recipe.yaml").read_text()
        pages = [(root / name / "README.md").read_text(), (root / "runs" / name / "report.html").read_text()]
        assert not any("import slimdpm" in page for page in pages)
        saved = load_file(root / name / "unet/diffusion_pytorch_model.safetensors")
        assert all(torch.equal(saved[key], value) for key, value in given[name].unet.state_dict().items())


def test_plain_diffusers_loads_it_where_slimdpm_cannot_be_imported(students, tmp_path):
    """In a process of its own, in which all that is made of it is made; compared with what is made here."""
    root, _ = students

    def without_slimdpm():
        for name in [name for name in sys.modules if name.partition(".")[0] == "slimdpm"]:
            del sys.modules[name]
        del diffusers.ClassConditionalLDMPipeline  # all that slimdpm adds to diffusers
        plain_diffusers.main(root, tmp_path / "made.npz")
        assert not [name for name in sys.modules if name.partition(".")[0] == "slimdpm"]

    done = Forked(without_slimdpm).wait()
    assert done.code == 0, done.err
    made = np.load(tmp_path / "made.npz")
    ours = plain_diffusers.samples(root, load_pipeline)
    for name, images in ours.items():
        np.testing.assert_allclose(made[name], images, atol=1e-4)
    for name in ("Img2Img", "Inpaint"):
        assert made[name].shape == (1, 16, 16, 3) and made[name].std() > 0
    for dtype in ("torch.float16", "torch.bfloat16"):
        np.testing.assert_allclose(made[dtype], made["torch.float32"], atol=0.05)
    assert np.array_equal(made["class"], load_pipeline(root / "class").unet.conv_in.weight.detach())


def test_the_snippet_of_its_readme_works(students):
    root, _ = students
    snippet = re.search(r"```python\n(.*?)```", (root / "latents/README.md").read_text(), re.DOTALL)[1]
    names = {}
    exec(snippet.replace("THIS FOLDER", str(root / "latents")).replace("=50", "=1"), names)
    assert (
        len(names["images"]) == 1
        and names["DiffusionPipeline"].from_pretrained(root / "latents").__class__ is LDMPipeline
    )

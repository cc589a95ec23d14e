"""Students that an earlier version saved still load and sample. The folders in `saved` are never made anew."""

from pathlib import Path

import numpy as np
import pytest
from diffusers import DDPMPipeline
from PIL import Image

from slimdpm import ClassConditionalLDMPipeline, load_pipeline, sample_images
from slimdpm.system.hashing import fingerprint

SAVED = Path(__file__).parent / "saved"
WEIGHTS = {"unconditional": "b00c15e99c2b", "class": "bb61ecaa758e"}  # of version 0.1.0
CLASSES = {"unconditional": DDPMPipeline, "class": ClassConditionalLDMPipeline}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_saved_student_loads_and_samples_the_same_images(kind):
    """Three steps of DDIM with seed 0; another processor may round a value up instead of down."""
    pipeline = load_pipeline(SAVED / kind)
    assert type(pipeline) is CLASSES[kind] and fingerprint(pipeline.unet) == WEIGHTS[kind]
    images = sample_images(pipeline, 3, steps=3, seed=0, scheduler="ddim")
    with Image.open(SAVED / kind / "sample.png") as kept:
        assert np.abs(np.concatenate(list(images), axis=1).astype(int) - np.asarray(kept)).max() <= 1


@pytest.mark.parametrize("kind", WEIGHTS)
def test_it_loads_in_its_own_class_of_diffusers_too(kind):
    assert fingerprint(CLASSES[kind].from_pretrained(SAVED / kind).unet) == WEIGHTS[kind]

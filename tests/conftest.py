"""What many tests are given: a teacher and images, made once."""

import logging
import os
import signal
import sys
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reached for the network would fail, not hang

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers import CLASSES, TINY
from PIL import Image

torch.set_num_threads(1)  # the tests run side by side


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def process_as_it_was():
    """A command has its process to itself: it takes the signals, and silences the libraries."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels, hook, filters = [logger.level for logger in loggers], sys.unraisablehook, warnings.filters[:]
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    sys.unraisablehook, warnings.filters[:] = hook, filters


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory):
    """A DDPM pipeline as diffusers saves it."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("teacher")
    DDPMPipeline(UNet2DModel(**TINY), DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Twelve PNGs of 24x20 smooth noise, in two folders."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(12):
        (folder / f"part{i % 2}").mkdir(exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        small.resize((24, 20), Image.Resampling.BICUBIC).save(folder / f"part{i % 2}" / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="session")
def class_folder(tmp_path_factory):
    """Nine PNGs of 16x16 smooth noise, three in the folder of each class."""
    folder = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(1)
    for i in range(9):
        (folder / CLASSES[i % 3]).mkdir(exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((16, 16), Image.Resampling.BICUBIC).save(folder / CLASSES[i % 3] / f"{i}.png")
    return folder


@pytest.fixture
def no_figures(monkeypatch):
    """Reports without drawings, which take longer than a short run: for tests that look at something else."""
    monkeypatch.setattr("slimdpm.report.figures.svg_of", lambda figure: "<svg></svg>")

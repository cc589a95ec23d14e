"""What many tests are given: a teacher and images, made once.

What takes seconds to import is imported where it is used: the process that hands the tests to others needs none of it.
"""

import gc
import logging
import os
import shutil
import signal
import sys
import warnings
from collections import Counter
from functools import cache, partial, wraps
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reached for the network would fail, not hang

import numpy as np
import pytest
from PIL import Image


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported here stays: garbage is sought neither meanwhile nor ever among it, and elsewhere seldom, since
    networks are many small objects that live for a while."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The tests run side by side."""
    import torch

    torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter):
    """Which tests did not run, and for want of what: not a mere number."""
    missing = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        file, _, reason = report.longrepr
        missing[Path(report.nodeid.split("::")[0]).name or file, reason.removeprefix("Skipped: ")] += 1
    for (file, reason), count in sorted(missing.items()):
        terminalreporter.write_line(f"NOT RUN: {count} of {file}: {reason}", yellow=True)


@pytest.fixture(autouse=True)
def seeded():
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def brief_reports():
    """Figures without a drawing, see `helpers.drawn`, and seconds of one round: both take longer than a short run."""
    from matplotlib.figure import Figure

    from slimdpm.demo import run
    from slimdpm.training import run_report

    def savefig(figure, target, **options):
        target.write("<svg></svg>") if hasattr(target, "write") else Path(target).touch()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Figure, "savefig", wraps(Figure.savefig)(savefig))
        for place in (run_report, run):
            patched.setattr(place, "brief_latencies", partial(place.brief_latencies, seconds=0))
        yield


@pytest.fixture(scope="session", autouse=True)
def one_command_line():
    """Typer builds all commands anew for each call, which takes longer than many a call."""
    import typer

    built = cache(typer.main.get_command)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("typer.main.get_command", built)
        patched.setattr("typer.testing._get_command", built)
        yield


@pytest.fixture(scope="session")
def one_torchlib():
    """PyTorch reads all of its ONNX functions from their sources anew for each export: a second of it."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read = cache(ONNXRegistry.from_torchlib)

    def again(*options, **named):
        registry, found = ONNXRegistry(), read(*options, **named)
        registry._opset_version = found.opset_version
        registry.functions = {target: list(functions) for target, functions in found.functions.items()}
        return registry

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ONNXRegistry, "from_torchlib", staticmethod(again))
        yield


@pytest.fixture
def no_figures(brief_reports):
    """As reports are now everywhere."""


@pytest.fixture(scope="module")
def chromium():
    """The system's browser, without a window."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium or Chrome is installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def any_memory(monkeypatch):
    """A dry run without the step that it imagines, which takes seconds: for tests that look at something else."""
    from slimdpm.training import dry_run
    from slimdpm.training.memory import Memory

    monkeypatch.setattr(dry_run, "estimate_memory", lambda job, processes: Memory(*range(10)))


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
        if logger.level != level:  # it empties the caches of all loggers
            logger.setLevel(level)
    sys.unraisablehook, warnings.filters[:] = hook, filters


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory):
    """A DDPM pipeline as diffusers saves it."""
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
    from helpers import TINY

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("teacher")
    DDPMPipeline(UNet2DModel(**TINY), DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def class_teacher(tmp_path_factory):
    """A class-conditional pipeline of pixels with a null class."""
    import torch
    from helpers import class_pipeline

    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("class-teacher")
    class_pipeline().save_pretrained(folder)
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
    from helpers import CLASSES

    folder = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(1)
    for i in range(9):
        (folder / CLASSES[i % 3]).mkdir(exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((16, 16), Image.Resampling.BICUBIC).save(folder / CLASSES[i % 3] / f"{i}.png")
    return folder

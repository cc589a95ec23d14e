"""Samples: schedulers, seeds, and the PNGs of ``slimdpm sample``."""

import numpy as np
import pytest
from conftest import TINY
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

from slimdpm import SlimdpmError, SpectralUNet2DModel, sample_images
from slimdpm.pictures import write_samples
from slimdpm.sampling import SCHEDULERS, make_scheduler, sample_batches


@pytest.fixture(scope="module")
def pipeline():
    return DDPMPipeline(SpectralUNet2DModel(**TINY), DDPMScheduler())


@pytest.mark.parametrize("scheduler", [None, *SCHEDULERS, "KDPM2DiscreteScheduler"])
def test_an_image_does_not_depend_on_its_batch(pipeline, scheduler):
    whole = sample_images(pipeline, 5, steps=6, scheduler=scheduler, seed=3, batch_size=5)
    parts = sample_images(pipeline, 5, steps=6, scheduler=scheduler, seed=3, batch_size=2)
    alone = next(sample_batches(pipeline, range(4, 5), steps=6, scheduler=scheduler, seed=3))
    for other in (parts, np.concatenate([whole[:4], alone])):
        assert np.abs(whole.astype(int) - other).max() <= 1  # rounding
    assert np.abs(whole[0].astype(int) - whole[1]).max() > 20
    other_seed = sample_images(pipeline, 1, steps=6, scheduler=scheduler, seed=4)
    assert np.abs(other_seed[0].astype(int) - whole[0]).max() > 20


def test_a_network_in_training_is_left_so(pipeline):
    pipeline.unet.train()
    sample_images(pipeline, 1, steps=2)
    assert pipeline.unet.training


@pytest.mark.parametrize("name", ["magic", "DPMSolverSDEScheduler", "FlowMatchEulerDiscreteScheduler", "os"])
def test_unknown_schedulers_are_refused(pipeline, name):
    with pytest.raises(SlimdpmError, match=f"unknown scheduler '{name}'; there are ddpm, ddim, dpm"):
        make_scheduler(pipeline, name)


def test_too_many_steps_are_refused(pipeline):
    with pytest.raises(SlimdpmError, match="cannot take 2000 steps"):
        sample_images(pipeline, 1, steps=2000, scheduler="ddim")


def test_pictures_are_written_and_made_once(tmp_path, teacher_folder, monkeypatch):
    folder = tmp_path / "out"
    write_samples(str(teacher_folder), folder, count=3, steps=3, seed=1, device="cpu")
    assert sorted(p.name for p in folder.iterdir()) == [
        "00000.png",
        "00001.png",
        "00002.png",
        "grid.png",
        "samples.json",
    ]
    first = [np.asarray(Image.open(folder / f"{i:05d}.png")) for i in range(3)]
    (folder / "00002.png").unlink()
    stamp = (folder / "00001.png").stat().st_mtime_ns
    write_samples(str(teacher_folder), folder, count=5, steps=3, seed=1, batch_size=2, device="cpu")
    assert (folder / "00001.png").stat().st_mtime_ns == stamp  # not made again
    again = [np.asarray(Image.open(folder / f"{i:05d}.png")) for i in range(5)]
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(first, again, strict=False))
    with pytest.raises(SlimdpmError, match="holds samples of another network or of other settings"):
        write_samples(str(teacher_folder), folder, count=3, steps=4, seed=1, device="cpu")


def test_pictures_are_not_mixed_with_other_files(tmp_path, teacher_folder):
    (tmp_path / "letter.txt").write_text("dear all")
    with pytest.raises(SlimdpmError, match="is not empty"):
        write_samples(str(teacher_folder), tmp_path, count=1, device="cpu")
    with pytest.raises(SlimdpmError, match="is a file"):
        write_samples(str(teacher_folder), tmp_path / "letter.txt", count=1, device="cpu")
    with pytest.raises(SlimdpmError, match="device 'abacus'"):
        write_samples(str(teacher_folder), tmp_path / "new", count=1, device="abacus")


def test_greyscale_networks_make_greyscale_pictures(tmp_path):
    unet = UNet2DModel(**{**TINY, "in_channels": 1, "out_channels": 1})
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "teacher")
    write_samples(str(tmp_path / "teacher"), tmp_path / "out", count=2, steps=2, device="cpu")
    assert Image.open(tmp_path / "out" / "00000.png").mode == Image.open(tmp_path / "out" / "grid.png").mode == "L"

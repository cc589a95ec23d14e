"""The sampler as a table, and the runner's noise: against diffusers' trajectories and PyTorch's generator."""

import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from slimdpm import SlimdpmError
from slimdpm.export import runner
from slimdpm.export.sampler_table import sampler_table
from slimdpm.pipelines.denoise import denoise, image_generators
from slimdpm.pipelines.sampling import SCHEDULERS

PREDICTIONS = ("epsilon", "v_prediction", "sample")
NOISY = ("ddpm", "dpm++sde", "euler-a")  # draw noise on the way
STEPS = (1, 2, 4, 7, 20, 50)
# As many as diffusers itself can take; the whole matrix is in benchmarks/sampler_tables.py.
LONG = [("ddpm", 1000, "epsilon", False), ("ddim", 1000, "epsilon", True), ("dpm++", 999, "sample", True)]
LONG += [("dpm++sde", 999, "v_prediction", False), ("unipc", 999, "epsilon", False), ("euler", 1000, "sample", False)]
LONG += [("euler-a", 1000, "epsilon", False), ("heun", 1000, "v_prediction", False), ("deis", 999, "sample", False)]
LONG += [("pndm", 1000, "v_prediction", False), ("ddim", 1000, "epsilon", False), ("ddim", 1000, "v_prediction", False)]
LONG += [("ddim", 1000, "sample", False), ("euler", 1000, "epsilon", False), ("euler", 1000, "v_prediction", False)]
ALPHA_BARS = DDPMScheduler().alphas_cumprod.double().numpy()


def network(prediction):
    """One that no table knows: the clean sample that it finds bends, mixes pixels and leaves the range."""

    def predict(x, t):
        alpha = float(np.interp(float(t), np.arange(1000), ALPHA_BARS)) ** 0.5
        sigma = (1 - alpha**2) ** 0.5
        clean = 1.4 * torch.tanh(0.7 * x + 0.5 * x.roll(1, -1) + float(t) / 2000)
        return {"sample": clean, "epsilon": (x - alpha * clean) / sigma, "v_prediction": (alpha * x - clean) / sigma}[
            prediction
        ].to(x)

    return predict


def trajectory(scheduler, network, steps, noisy):
    """diffusers' own way from the noise of image 0, and the largest number on it.

    The network is float32, as the runner's; the scheduler goes on in float64 where it adds no noise, which follows the
    type.
    """
    generators, largest = image_generators(3, range(1)), [scheduler.init_noise_sigma]
    noise = torch.stack([torch.randn(3, 8, 8, generator=g) for g in generators])

    def predict(x, t):
        largest.append(x.abs().max().item())
        return network(x.float(), t).to(x)

    made = denoise(predict, scheduler, noise.float() if noisy else noise.double(), steps, generators)
    return made.numpy(), max(*largest, made.abs().max().item())


def off_the_way(name, prediction, clip, steps):
    """How far the table's samples are off diffusers', relative to the largest number on the way; None where diffusers'
    scheduler says that it cannot."""
    cls, options = SCHEDULERS[name]
    config = DDPMScheduler(prediction_type=prediction, clip_sample=clip).config
    scheduler = getattr(diffusers, cls).from_config(config, **options)
    try:
        wanted, largest = trajectory(scheduler, network(prediction), steps, noisy=name in NOISY)
    except (ValueError, NotImplementedError):
        return None
    assert np.isfinite(wanted).all()
    table = sampler_table(getattr(diffusers, cls).from_config(config, **options), steps)

    def outputs(x, t):
        return network(prediction)(torch.from_numpy(x), t).numpy()

    table = json.loads(json.dumps(table.as_json()))
    made = runner.denoise(outputs, table, [runner.random_stream(3, 0)], (3, 8, 8), lambda: None)
    return np.abs(made - wanted).max() / float(largest)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", [False, True])
def test_the_table_goes_diffusers_way(name, prediction, clip):
    found = {steps: off_the_way(name, prediction, clip, steps) for steps in STEPS}
    tried = {steps: off for steps, off in found.items() if off is not None}
    for steps, off in tried.items():
        assert off <= 1e-5, steps
    assert len(tried) >= 4 or (name, prediction) in [("euler-a", "sample"), ("pndm", "sample")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps", "prediction", "clip"), LONG)
def test_a_thousand_steps_stay_on_it(name, steps, prediction, clip):
    assert off_the_way(name, prediction, clip, steps) <= 1e-5


def test_what_is_no_table_is_refused_by_name():
    with pytest.raises(SlimdpmError, match="thresholding is no table"):
        sampler_table(DDIMScheduler(thresholding=True), 4)
    with pytest.raises(SlimdpmError, match="MultistepScheduler cannot .* a table of 1000 steps: .* not finite"):
        sampler_table(DPMSolverMultistepScheduler(), 1000)  # two of its noise levels are one

    class Bent(DDIMScheduler):
        def step(self, model_output, timestep, sample, **options):
            return (super().step(model_output, timestep, sample, **options)[0].tanh(),)

    with pytest.raises(SlimdpmError, match="Bent cannot be exported: its steps are not linear"):
        sampler_table(Bent(), 4)


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 5, 7), (4, 4, 1)])
def test_noise_is_pytorchs(shape):
    for image in (0, 7, 10**6):
        generator, draw = image_generators(11, [image])[0], runner.random_stream(11, image)
        for _ in range(3):  # a stream goes on
            expected = torch.randn((1, *shape), generator=generator)[0].numpy()
            np.testing.assert_allclose(draw(shape), expected, atol=1e-6)

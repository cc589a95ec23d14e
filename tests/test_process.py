"""The forward process against diffusers' own scheduler, and conversions between predictions."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from slimdpm.errors import SlimdpmError
from slimdpm.process import PREDICTIONS, Process, comparison_kind

T = torch.tensor([0, 10, 500, 999])


@pytest.fixture
def sample():
    return torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_noise_and_velocity_equal_diffusers(kind, schedule, sample):
    x0, noise = sample
    process = Process.of_scheduler(kind(beta_schedule=schedule))
    reference = DDPMScheduler(beta_schedule=schedule)
    torch.testing.assert_close(process.add_noise(x0, noise, T), reference.add_noise(x0, noise, T))
    torch.testing.assert_close(process.target("v_prediction", x0, noise, T), reference.get_velocity(x0, noise, T))


@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("target", PREDICTIONS)
def test_the_true_prediction_converts_to_the_true_other_one(source, target, sample):
    x0, noise = (s.double() for s in sample)
    process = Process.of_scheduler(DDPMScheduler())
    process = Process(process.alphas_cumprod.double(), "epsilon")
    x_t = process.add_noise(x0, noise, T)
    converted = process.convert(process.target(source, x0, noise, T), x_t, T, source, target)
    torch.testing.assert_close(converted, process.target(target, x0, noise, T), atol=1e-8, rtol=1e-8)


def test_an_error_in_x0_counts_in_epsilon_by_the_signal_to_noise_ratio(sample):
    x0, noise = sample
    process = Process.of_scheduler(DDPMScheduler(prediction_type="sample"))
    assert comparison_kind(process.prediction) == "epsilon"
    x_t, wrong = process.add_noise(x0, noise, T), x0 + 0.1
    error = (process.convert(wrong, x_t, T, "sample", "epsilon") - noise).square().mean(dim=(1, 2, 3))
    alpha_bar = process.alphas_cumprod[T]
    torch.testing.assert_close(error, 0.01 * alpha_bar / (1 - alpha_bar), rtol=1e-2, atol=1e-6)


def test_what_is_not_supported_says_so():
    with pytest.raises(SlimdpmError, match="FlowMatchEulerDiscreteScheduler"):
        Process.of_scheduler(FlowMatchEulerDiscreteScheduler())
    process = Process.of_scheduler(DDPMScheduler())
    with pytest.raises(ValueError, match="unknown prediction"):
        process.convert(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), T[:1], "epsilon", "score")

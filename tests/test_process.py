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

from slimdpm.method.forward_process import PREDICTIONS, Process, comparison_kind, config_of
from slimdpm.system.errors import SlimdpmError

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


def test_arguments_given_by_place_belong_to_the_process():
    """diffusers leaves them out when it makes one scheduler of another."""
    scheduler = DDPMScheduler(20, 0.01, 0.3, "scaled_linear")
    torch.testing.assert_close(Process.of_scheduler(scheduler).alphas_cumprod, scheduler.alphas_cumprod)
    assert len(Process.of_scheduler(DDIMScheduler.from_config(config_of(scheduler)))) == 20


def test_betas_that_are_no_schedule_are_one_line():
    for betas in ([float("nan")] * 4, [0.1, 2.0], [[0.1], [0.2]], [-0.5, 0.1]):
        with pytest.raises(SlimdpmError, match="betas are no noise schedule"):
            Process.of_scheduler(DDPMScheduler(num_train_timesteps=len(betas), trained_betas=betas)).check()
    scheduler = DDPMScheduler()
    scheduler.register_to_config(beta_schedule="abc")
    with pytest.raises(SlimdpmError, match="no noise schedule.*abc"):
        Process.of_scheduler(scheduler)


def test_what_does_not_follow_at_the_ends_of_the_process_is_refused():
    """Where there is no signal nothing follows from ε, where there is no noise no ε from x₀: against the formula."""
    ends = Process.of_scheduler(DDIMScheduler(rescale_betas_zero_snr=True))
    begins = Process.of_scheduler(DDPMScheduler(num_train_timesteps=3, trained_betas=[0.0, 0.1, 0.2]))
    x, last, first = torch.ones(1, 1, 2, 2), torch.tensor([999]), torch.tensor([0])
    assert not ends.convert(x, x / 2, last, "epsilon", "v_prediction").isfinite().all()
    assert not begins.convert(x, x / 2, first, "sample", "epsilon").isfinite().all()
    for refused in (("epsilon",), ("v_prediction", "epsilon")):
        with pytest.raises(SlimdpmError, match="ends without signal.*must both predict v_prediction or sample"):
            ends.check_training(*refused)
    with pytest.raises(SlimdpmError, match="begins without any noise"):
        begins.check_training("sample")
    ends.check_training("v_prediction", "sample")
    begins.check_training("epsilon", "v_prediction")
    cosine = Process.of_scheduler(DDPMScheduler(beta_schedule="squaredcos_cap_v2"))
    cosine.check_training("epsilon")
    with pytest.raises(SlimdpmError, match="ends without signal"):
        cosine.check_training("v_prediction", "epsilon")

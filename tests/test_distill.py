"""Feature pairs and the distiller: what is compared, and where the gradients go."""

import copy

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from helpers import TINY, TINY_CONDITION, TINY_RESNET

from slimdpm import SpectralUNet2DModel
from slimdpm.method.distiller import Distiller, TappedStudent, Taught
from slimdpm.method.features import FeatureTaps, block_names, match_features, tap_shapes
from slimdpm.method.forward_process import Process
from slimdpm.method.losses import LossSettings, frequency_loss, min_snr_weight, spatial_loss, spectral_weight
from slimdpm.system.errors import SlimdpmError

TEACHER = {**TINY, "_class_name": "UNet2DModel"}
STUDENT = {**TINY, "block_out_channels": (8, 16), "_class_name": "SpectralUNet2DModel"}
DEEP = {
    **TEACHER,
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
}


def make(settings=None, prediction="epsilon", teacher_prediction="epsilon"):
    pairs = match_features(STUDENT, TEACHER)
    student = TappedStudent(SpectralUNet2DModel(**{k: v for k, v in STUDENT.items() if k[0] != "_"}), pairs)
    process = Process(Process.of_scheduler(DDPMScheduler()).alphas_cumprod, prediction)
    teacher = UNet2DModel(**TINY)
    return Distiller(
        student,
        process,
        teacher=teacher,
        teacher_prediction=teacher_prediction,
        pairs=pairs,
        settings=settings or LossSettings(),
    )


@pytest.fixture
def batch():
    return torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16), torch.tensor([30, 600])


def test_tap_shapes_are_those_of_a_real_forward_pass():
    model = UNet2DModel(**TINY)
    taps = FeatureTaps(model, block_names(model))
    model(torch.randn(1, 3, 16, 16), 5)
    assert [(s.channels, s.height, s.width) for s in tap_shapes(TEACHER)] == [f.shape[1:] for f in taps.take()]
    assert [s.scale for s in tap_shapes(TEACHER)] == [2, 2, 2, 1, 1]
    with pytest.raises(KeyError):
        taps.take()  # features are handed over once


@pytest.mark.parametrize("config", [TEACHER, {**TINY_RESNET, "_class_name": "UNet2DModel"}])
def test_networks_of_one_topology_are_paired_block_by_block(config):
    narrow = {**config, "block_out_channels": (8, 16), "_class_name": "SpectralUNet2DModel"}
    pairs = match_features(narrow, config)
    assert [(p.student.name, p.teacher.name) for p in pairs] == [
        (name, name) for name in ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1")
    ]
    assert str(pairs[0]) == "down_blocks.0 (8x8x8) -> down_blocks.0 (16x8x8)"


def test_networks_of_another_depth_are_paired_by_scale_from_the_inside():
    pairs = match_features(STUDENT, DEEP)
    # Two blocks at half size against one: the inner one has the counterpart. The middles are at different scales.
    assert [(p.student.name, p.teacher.name) for p in pairs] == [
        ("down_blocks.1", "down_blocks.0"),
        ("up_blocks.0", "up_blocks.1"),
        ("up_blocks.1", "up_blocks.2"),
    ]
    assert all((p.student.height, p.student.width) == (p.teacher.height, p.teacher.width) for p in pairs)


def test_conditional_networks_can_be_tapped():
    names = [s.name for s in tap_shapes({**TINY_CONDITION, "_class_name": "UNet2DConditionModel"})]
    assert names == ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]


def test_pairs_can_be_chosen():
    pairs = match_features(STUDENT, TEACHER, pairs=["mid_block", "down_blocks.0:down_blocks.1"])
    assert [(p.student.name, p.teacher.name) for p in pairs] == [
        ("mid_block", "mid_block"),
        ("down_blocks.0", "down_blocks.1"),
    ]
    assert match_features(STUDENT, TEACHER, pairs="none") == []
    assert [p.student.name for p in match_features(STUDENT, TEACHER, levels=[1])] == ["up_blocks.0", "up_blocks.1"]
    with pytest.raises(SlimdpmError, match="the teacher has no block 'up_blocks.9'"):
        match_features(STUDENT, TEACHER, pairs=["mid_block:up_blocks.9"])
    with pytest.raises(SlimdpmError, match="different sizes"):
        match_features(STUDENT, TEACHER, pairs=["up_blocks.1:down_blocks.0"])


def test_loss_is_the_sum_that_the_paper_writes(batch):
    x0, noise, t = batch
    distiller = make(LossSettings(lambda_spatial=0.3, lambda_freq=0.7))
    losses = distiller.losses(x0, noise, t)
    assert set(losses) == {"loss", "denoising", "spatial", "frequency"}
    total = losses["denoising"] + 0.3 * losses["spatial"] + 0.7 * losses["frequency"]
    torch.testing.assert_close(losses["loss"], total)
    # The parts, recomputed from two plain forward passes.
    x_t = distiller.process.add_noise(x0, noise, t)
    prediction, features = distiller.student(x_t, t)
    truth, truths, _ = distiller.teach(x_t, t, {})
    pairs = [(prediction, truth), *zip(features, truths, strict=True)]
    assert len(pairs) == 6
    weights = [spectral_weight(x0, tuple(s.shape[-2:])) for s, _ in pairs]
    torch.testing.assert_close(losses["spatial"], spatial_loss(pairs))
    torch.testing.assert_close(losses["frequency"], frequency_loss(pairs, weights))
    torch.testing.assert_close(losses["denoising"], (prediction - noise).square().mean())


def test_min_snr_weighs_denoising_alone_where_the_terms_are_not_weighed(batch):
    x0, noise, t = batch
    plain, weighed = (make(LossSettings(snr_gamma=gamma, snr_weighted=False)) for gamma in (None, 5.0))
    weighed.student.load_state_dict(plain.student.state_dict())
    weighed.teacher.load_state_dict(plain.teacher.state_dict())
    a, b = plain.losses(x0, noise, t), weighed.losses(x0, noise, t)
    prediction, _ = plain.student(plain.process.add_noise(x0, noise, t), t)
    weight = min_snr_weight(plain.process.alphas_cumprod, "epsilon", 5.0)[t]
    torch.testing.assert_close(b["denoising"], (weight * (prediction - noise).square().mean(dim=(1, 2, 3))).mean())
    assert not torch.isclose(a["denoising"], b["denoising"])
    torch.testing.assert_close(a["spatial"], b["spatial"])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weighs_each_samples_share_of_the_terms(kind, batch):
    x0, noise, t = batch
    assert (make(LossSettings(snr_gamma=5.0), kind, kind).pair_weight is None) == (kind == "epsilon")
    assert make(LossSettings(), kind, kind).pair_weight is None
    distiller = make(LossSettings(snr_gamma=5.0, snr_weighted=True), kind, kind)
    said, truth = torch.randn_like(x0), torch.randn_like(x0)
    losses = distiller.losses(x0, noise, t, student=lambda *_, **__: (said, []), taught=Taught(truth, []))
    weight = min_snr_weight(distiller.process.alphas_cumprod, kind, 5.0)[t].double()
    off = (said - truth).double()
    assert losses["spatial"].item() == pytest.approx((weight * off.square().mean(dim=(1, 2, 3))).mean().item())
    omega = spectral_weight(x0.double(), x0.shape[-2:])
    alone = [frequency_loss([(off[[i]], torch.zeros_like(off[[i]]))], [omega[[i]]]).item() for i in range(len(t))]
    assert losses["frequency"].item() == pytest.approx(np.mean(weight.numpy() * alone), rel=1e-5)
    assert len(set(weight.tolist())) > 1


def test_gradients_reach_student_and_aligners_and_never_the_teacher(batch):
    distiller = make()
    before = copy.deepcopy(distiller.teacher.state_dict())
    distiller.losses(*batch)["loss"].backward()
    assert [n for n, p in distiller.student.named_parameters() if p.grad is None] == []
    assert len(distiller.student.aligners) == 5
    assert all(p.grad is None and not p.requires_grad for p in distiller.teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in distiller.teacher.state_dict().items())
    assert not distiller.teacher.training


def test_the_students_state_holds_no_teacher_and_its_unet_no_aligner():
    distiller = make()
    assert {name.split(".")[0] for name in distiller.student.state_dict()} == {"unet", "aligners"}
    plain = SpectralUNet2DModel(**{k: v for k, v in STUDENT.items() if k[0] != "_"})
    assert distiller.student.unet.state_dict().keys() == plain.state_dict().keys()


def test_a_part_of_weight_zero_is_not_computed(batch):
    assert set(make(LossSettings(lambda_spatial=0)).losses(*batch)) == {"loss", "denoising", "frequency"}
    assert set(make(LossSettings(lambda_freq=0)).losses(*batch)) == {"loss", "denoising", "spatial"}


def test_without_a_teacher_only_denoising_is_left(batch):
    student = TappedStudent(UNet2DModel(**TINY))
    distiller = Distiller(student, Process.of_scheduler(DDPMScheduler()))
    losses = distiller.losses(*batch)
    assert set(losses) == {"loss", "denoising"}
    assert losses["loss"] is losses["denoising"]


@pytest.mark.parametrize("teacher_prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_networks_that_are_right_agree_whatever_they_predict(prediction, teacher_prediction, batch):
    """Like is compared with like: two perfect networks of different kinds have no loss at all."""
    x0, noise, t = batch
    distiller = make(prediction=prediction, teacher_prediction=teacher_prediction)
    process = distiller.process

    def perfect(kind):
        return lambda x_t, t, **_: (process.target(kind, x0, noise, t), [])

    distiller.teacher.forward = lambda x_t, t, **_: (process.target(teacher_prediction, x0, noise, t),)
    distiller.teacher_taps.names.clear()
    losses = distiller.losses(x0, noise, t, student=perfect(prediction))
    for name, value in losses.items():
        assert value.item() < 1e-6, name


@pytest.mark.parametrize(
    ("source", "kind"), [("epsilon", "v_prediction"), ("sample", "v_prediction"), ("sample", "epsilon")]
)
@pytest.mark.parametrize("guided", [False, True])
def test_a_teacher_is_trusted_where_its_error_does_not_grow(source, kind, guided, batch):
    """An error of the teacher's own prediction reaches the student's target at most DOUBT^-½ / 2 times as large."""
    x0, noise, t = batch[0], batch[1], torch.tensor([0, 999])
    settings = LossSettings(lambda_spatial=1, lambda_freq=0, snr_gamma=5.0, snr_weighted=False)
    distiller = make(settings, kind, source)
    process, error = distiller.process, 0.1 * torch.randn(x0.shape)
    x_t = process.add_noise(x0, noise, t)
    said = process.target(source, x0, noise, t) + error
    taught = Taught(process.convert(said, x_t, t, source, kind), [], error if guided else None)
    true = process.target(kind, x0, noise, t)
    losses = distiller.losses(x0, noise, t, student=lambda *_, **__: (true, []), taught=taught)
    alphas = process.alphas_cumprod.double()[t]
    power = alphas if source == "epsilon" else 1 - alphas  # (B,)
    trust = power / (power + 0.02)
    added = error.double().square().mean(dim=(1, 2, 3))
    grown = added * (alphas if kind == "epsilon" else 1) / power
    assert losses["spatial"].item() == pytest.approx((trust.square() * grown).mean().item(), rel=1e-3)
    assert losses["spatial"].item() < added.max().item() / (4 * 0.02)
    weight = min_snr_weight(process.alphas_cumprod, kind, distiller.settings.snr_gamma)[t]
    expected = (weight * trust.square() * added).mean().item() if guided else 0
    assert losses["denoising"].item() == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_a_teacher_of_the_same_prediction_is_trusted_everywhere():
    for kind in ("epsilon", "v_prediction"):
        assert make(prediction=kind, teacher_prediction=kind).trust is None
        assert make(prediction=kind, teacher_prediction="v_prediction").trust is None
    assert make(prediction="sample", teacher_prediction="epsilon").trust is None

"""Spectral and sliced distances see what was done to photographs, and know when it was nothing."""

import io
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import wasserstein_distance

from slimdpm.data.demo_photographs import demo_source
from slimdpm.metrics import sliced
from slimdpm.metrics.intervals import Measured, draw, from_mean
from slimdpm.metrics.sliced import laplacian_pyramid, patches, sliced_wasserstein
from slimdpm.metrics.spectral import octaves, spectra, spectral_metrics

pytestmark = pytest.mark.slow

TOP = "power ratio 0.25-0.5"
DISTANCE = "log-spectral distance, dB"


@pytest.fixture(scope="module")
def photographs():
    source = demo_source("held-out")
    return np.stack([np.asarray(source.image(i)) for i in range(0, len(source), 4)])


def blurred(images, sigma):
    return np.rint(gaussian_filter(images.astype(float), (0, sigma, sigma, 0))).astype(np.uint8)


def noisy(images, sigma):
    noise = np.random.default_rng(1).normal(0, sigma, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


def compressed(images, quality):
    result = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        result.append(np.asarray(Image.open(buffer)))
    return np.stack(result)


def measure(images, reference):
    draws = draw(len(images), len(reference), replicates=200)
    result = spectral_metrics(spectra([images]), spectra([reference]), draws)
    return result | sliced_wasserstein(patches([images]), patches([reference]), draws)


@pytest.fixture(scope="module")
def damaged(photographs):
    """What is measured of the photographs once they are damaged in some way: once for each."""
    return cache(lambda damage, strength: measure(damage(photographs, strength), photographs))


@pytest.mark.parametrize(
    ("damage", "strengths", "metric"),
    [
        (blurred, (0.3, 0.5, 1.0, 2.0), DISTANCE),
        (blurred, (0.3, 0.5, 1.0, 2.0), "upper-half error, dB"),
        (blurred, (0.5, 1.0, 2.0), "SWD 32px"),
        (noisy, (2, 5, 10, 20), DISTANCE),
        (noisy, (5, 10, 20), "SWD 32px"),
        (compressed, (60, 25, 8), DISTANCE),
    ],
)
def test_more_damage_is_further(damaged, damage, strengths, metric):
    values = [0.0, *(damaged(damage, strength)[metric].value for strength in strengths)]
    assert np.all(np.diff(values) > 0), values


def test_a_blur_of_half_a_pixel_is_seen_and_no_blur_is_not(photographs, damaged):
    """The top octave's ratio lies outside its own interval around 1; that of other photographs of the kind does not."""
    blur = damaged(blurred, 0.5)
    assert blur[TOP].interval[1] < 1 and blur[TOP].value < 0.5
    assert damaged(noisy, 10)[TOP].interval[0] > 1
    halves = measure(photographs[::2], photographs[1::2])
    assert halves[TOP].interval[0] < 1 < halves[TOP].interval[1]
    same = measure(photographs, photographs)
    assert same[DISTANCE].value == 0 and same[TOP].value == 1 and same["SWD 32px"].value == 0


def test_the_power_ratio_is_the_filters(photographs):
    """Half the contrast is a quarter of the power in each octave."""
    faint = np.rint(photographs * 0.5 + 64).astype(np.uint8)
    found = measure(faint, photographs)
    assert found["power ratio 0.125-0.25"].value == pytest.approx(0.25, rel=0.02)
    assert octaves(16) == [(0.25, 0.5), (0.125, 0.25), (0.0625, 0.125)]


def test_the_sliced_distance_is_scipys(photographs):
    """One-dimensional distances of the projected patches, against SciPy's exact ones; quantiles are a grid."""
    a, b = patches([photographs[:40]])[32], patches([noisy(photographs[40:80], 15)])[32]
    rng = np.random.default_rng(32)
    directions = rng.standard_normal((a.shape[-1], sliced.DIRECTIONS)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=0)
    x, y = a.reshape(-1, a.shape[-1]) / b.std() @ directions, b.reshape(-1, b.shape[-1]) / b.std() @ directions
    want = np.mean([wasserstein_distance(x[:, d], y[:, d]) for d in range(sliced.DIRECTIONS)])
    found = sliced_wasserstein({32: a}, {32: b}, draw(40, 40, replicates=10))["SWD 32px"].value
    assert found == pytest.approx(want, rel=0.02)


def test_the_pyramid_adds_up_and_ends_at_sixteen_pixels():
    x = torch.rand(2, 3, 64, 64)
    levels = laplacian_pyramid(x)
    assert [level.shape[-1] for level in levels] == [64, 32, 16]
    whole = levels[-1]
    for level in reversed(levels[:-1]):
        whole = level + F.interpolate(whole, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(whole, x)


def test_intervals_cover_the_truth():
    """Of 200 experiments with a known mean about 95 % of the intervals hold it; paired ratios have no spread."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        low, high = from_mean(rng.exponential(size=80), draw(80, 1, replicates=300, seed=seed).images).interval
        held += low <= 1 <= high
    assert 0.88 <= held / 200 <= 0.985
    values = rng.uniform(1, 2, 50)
    shares = draw(50, 1).images
    paired = from_mean(values * 1.1, shares).ratio(from_mean(values, shares))
    assert paired.value == pytest.approx(1.1) and paired.interval == pytest.approx((1.1, 1.1))
    assert Measured(1.0).interval is None

"""Distances of feature sets against SciPy's matrix root and brute force."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.linalg import sqrtm

from slimdpm.metrics import distances
from slimdpm.metrics.distances import Moments, frechet_distance, moments
from slimdpm.metrics.intervals import draw, from_influence, from_jackknife
from slimdpm.metrics.moments_files import load_moments, save_moments
from slimdpm.metrics.scores import _measure, _Reference
from slimdpm.system.errors import SlimdpmError


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def scipys(a, b):
    """As the reference implementation computes it, with SciPy's root of the product."""
    root = sqrtm(a.covariance @ b.covariance)
    difference = a.mean - b.mean
    return difference @ difference + np.trace(a.covariance + b.covariance - 2 * np.real(root))


@pytest.mark.parametrize("dimension", [3, 40])
def test_frechet_distance_equals_scipys(rng, dimension):
    a, b = (moments(rng.normal(shift, 1, (200, dimension)) @ rng.normal(size=(dimension,) * 2)) for shift in (0, 0.3))
    assert frechet_distance(a, b) == pytest.approx(scipys(a, b), rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_frechet_distance_of_singular_covariances(rng):
    """Fewer vectors than dimensions. Both lie in one subspace: there SciPy's root exists and is well conditioned."""
    basis = np.linalg.qr(rng.normal(size=(60, 8)))[0]
    x, y = rng.normal(size=(30, 8)), 1.5 * rng.normal(size=(25, 8)) + 0.2
    inside = scipys(moments(x), moments(y))
    a, b = moments(x @ basis.T), moments(y @ basis.T)
    assert np.linalg.matrix_rank(a.covariance) == 8
    assert frechet_distance(a, b) == pytest.approx(inside, rel=1e-6)
    # Subspaces that only overlap: against the nuclear norm of the product of the data matrices themselves.
    x, y = rng.normal(size=(12, 60)), rng.normal(size=(9, 60)) + 0.1
    centred = [(v - v.mean(axis=0)) / np.sqrt(len(v) - 1) for v in (x, y)]
    trace = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    want = np.sum((x.mean(0) - y.mean(0)) ** 2) + sum((c**2).sum() for c in centred) - 2 * trace
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(want, rel=1e-6)


def test_frechet_distance_of_a_set_with_itself_is_zero(rng):
    for count in (20, 400):  # singular and not
        a = moments(rng.normal(5, 3, (count, 50)))
        assert abs(frechet_distance(a, a)) < 1e-9 * np.trace(a.covariance)


def test_moments_equal_numpys_far_from_zero_and_across_blocks(rng, monkeypatch):
    x = (1e4 + rng.normal(size=(50, 4))).astype(np.float64)
    monkeypatch.setattr(distances, "_ROWS", 7)
    found = moments(x)
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x.T), rtol=1e-9)
    with pytest.raises(ValueError, match="two vectors"):
        moments(x[:1])


def test_kid_equals_the_direct_double_sum(rng, monkeypatch):
    monkeypatch.setattr(distances, "_ROWS", 6)
    x, y = rng.normal(size=(20, 5)), rng.normal(0.4, 1.2, size=(17, 5))
    kernel = lambda a, b: (a @ b / 5 + 1) ** 3  # noqa: E731
    within = sum(kernel(x[i], x[j]) for i in range(20) for j in range(20) if i != j) / (20 * 19)
    other = sum(kernel(y[i], y[j]) for i in range(17) for j in range(17) if i != j) / (17 * 16)
    between = sum(kernel(a, b) for a in x for b in y) / (20 * 17)
    assert distances.kernel_distance(x, y).value == pytest.approx(within + other - 2 * between, rel=1e-10)


def test_kid_is_unbiased_and_its_error_is_the_spread(rng):
    """Many pairs of sets of one distribution: the mean is 0; of two, the spread is the standard error."""
    same = [distances.kernel_distance(*rng.normal(size=(2, 40, 3))).value for _ in range(400)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 20
    found = [distances.kernel_distance(rng.normal(0.8, 1, (60, 3)), rng.normal(0, 1, (50, 3))) for _ in range(300)]
    draws = draw(60, 50)
    measured = [from_influence(f.value, f.influence, f.reference_influence, draws) for f in found]
    spread = np.std([m.value for m in measured])
    assert np.mean([m.replicates.std() for m in measured]) == pytest.approx(spread, rel=0.15)


def test_precision_and_recall_equal_brute_force(rng, monkeypatch):
    monkeypatch.setattr(distances, "_ROWS", 8)
    x, y = rng.normal(size=(30, 3)), rng.normal(1.2, 1.5, size=(25, 3))

    def radius(points, i, k=3):
        return sorted(np.linalg.norm(points[i] - points[j]) for j in range(len(points)) if j != i)[k - 1]

    precise = [any(np.linalg.norm(a - y[j]) <= radius(y, j) for j in range(25)) for a in x]
    recalled = [any(np.linalg.norm(b - x[i]) <= radius(x, i) for i in range(30)) for b in y]
    found = distances.precision_recall(x, y)
    assert found.precise.tolist() == precise and found.recalled.tolist() == recalled
    assert 0 < found.precise.mean() < 1 and 0 < found.recalled.mean() < 1
    with pytest.raises(ValueError, match="more than 3 images"):
        distances.precision_recall(x[:3], y)


def test_inception_score_of_known_answers():
    certain = np.eye(4)[np.arange(40) % 4] * 1e3  # each split sees four classes alike often, and each for sure
    assert distances.inception_score(certain, splits=5).value == pytest.approx(4)
    assert distances.inception_score(np.zeros((40, 4))).value == pytest.approx(1)


def test_the_extrapolated_distance_is_nearer_the_truth(rng):
    """Of samples of the reference's own distribution: the truth is 0, the plain distance is far above it."""
    reference = Moments(0, np.zeros(20), np.eye(20))
    x = rng.normal(size=(400, 20))
    plain = frechet_distance(moments(x), reference)
    infinite = distances.frechet_infinity(x, reference)
    assert plain > 0.3 and abs(infinite.value) < 0.35 * plain


def test_the_jackknifes_interval_is_the_spread(rng):
    reference = Moments(0, np.zeros(4), np.eye(4))
    values, widths = [], []
    for seed in range(60):
        x = rng.normal(0.5, 1.2, (150, 4))
        value = frechet_distance(moments(x), reference)
        measured = from_jackknife(value, distances.frechet_jackknife(x, reference), draw(150, 1, seed=seed))
        values.append(value)
        widths.append(measured.replicates.std())
    assert np.mean(widths) == pytest.approx(np.std(values), rel=0.25)


def test_intervals_of_ratios_are_the_spread_of_ratios(rng):
    """Two models whose images share their noise, drawn again and again: FID, FID∞ and Inception Score."""
    reference, count = Moments(0, np.zeros(6), np.eye(6)), 300
    found, widths, alone = [], [], []
    for seed in range(60):
        shared = rng.normal(size=(count, 6))
        draws, measured = draw(count, 1, seed=seed), []
        for shift, scale in ((0.5, 1.2), (0.6, 1.1)):
            x = shift + scale * (0.8 * shared + 0.6 * rng.normal(size=(count, 6)))
            collected = features_alone(x, 3 * x)
            measured.append(_measure(collected, _Reference(reference), draws, collected.extractor))
        first, second = measured
        ratios = {name: second[name].ratio(first[name]) for name in first}
        found.append([ratio.value for ratio in ratios.values()])
        widths.append([ratio.replicates.std() for ratio in ratios.values()])
        alone.append([np.sqrt(sum((m[n].replicates.std() / m[n].value) ** 2 for m in measured)) for n in first])
    assert list(ratios) == ["FID", "FID∞", "Inception Score"]
    np.testing.assert_allclose(np.mean(widths, axis=0), np.std(found, axis=0), rtol=0.3)
    assert (np.mean(widths, axis=0)[:2] < 0.9 * np.mean(alone, axis=0)[:2]).all()  # what is shared is taken off


def test_the_extrapolations_interval_is_the_spread(rng):
    reference = Moments(0, np.zeros(4), np.eye(4))
    values, widths = [], []
    for _ in range(80):
        x = rng.normal(0.5, 1.2, (150, 4))
        infinity = distances.frechet_infinity(x, reference)
        without = distances.frechet_jackknife(x, reference)
        plain = np.sqrt((len(without) - 1) * np.var(without))
        values.append(infinity.value)
        widths.append(infinity.spread * plain)
    assert np.mean(widths) == pytest.approx(np.std(values), rel=0.25)


def features_alone(features, logits):
    extractor = SimpleNamespace(name="inception", distance_name="FID")
    return SimpleNamespace(features=lambda: features, logits=lambda: logits, extractor=extractor)


def test_reference_statistics_are_those_of_others(tmp_path, rng):
    x = rng.normal(size=(30, 6))
    np.savez(tmp_path / "theirs.npz", mu=x.mean(0), sigma=np.cov(x, rowvar=False))
    loaded = load_moments(tmp_path / "theirs.npz")
    assert abs(frechet_distance(loaded, moments(x))) < 1e-10
    save_moments(tmp_path / "ours.npz", moments(x))
    with np.load(tmp_path / "ours.npz") as archive:
        np.testing.assert_allclose(archive["sigma"], np.cov(x, rowvar=False))
        np.testing.assert_allclose(archive["mu"], x.mean(0))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mean": np.zeros(3)}, "holds no mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.zeros((2, 2))}, "are needed"),
        ({"mu": np.full(2, np.nan), "sigma": np.zeros((2, 2))}, "not finite"),
        ({"mu": np.array([object()]), "sigma": np.zeros((1, 1))}, "holds no mu and sigma"),  # a pickle
        ({"mu": np.zeros(1, complex), "sigma": np.zeros((1, 1))}, "of the types complex128 and float64"),
        ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "sigma is no covariance"),
        ({"mu": np.zeros(2), "sigma": np.triu(np.ones((2, 2)))}, "sigma is no covariance"),
        ({"mu": np.full(2, 1e300), "sigma": np.eye(2)}, "beyond reason"),
        ({"mu": np.array(["a"]), "sigma": np.zeros((1, 1))}, "of the types <U1 and float64"),
    ],
)
def test_bad_reference_statistics_are_one_line(tmp_path, arrays, words):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(SlimdpmError, match=words):
        load_moments(tmp_path / "bad.npz")
    with pytest.raises(SlimdpmError, match="does not exist"):
        load_moments(tmp_path / "none.npz")

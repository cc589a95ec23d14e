"""Distances between two sets of feature vectors: Fréchet, kernel, precision and recall, Inception Score.

Pure mathematics on arrays; which network made the features is somebody else's business. Sums are float64. Nothing here
holds an N×N matrix: kernels and distances are computed in blocks of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

_ROWS = 1024  # of a block


@dataclass(frozen=True)
class Moments:
    """Mean ``(D,)`` and covariance ``(D, D)`` of `count` feature vectors, float64; `count` is 0 if unknown."""

    count: int
    mean: np.ndarray
    covariance: np.ndarray


@dataclass(frozen=True)
class Extrapolated:
    """A value for infinitely many images; its standard error is `spread` times that of the value on all images."""

    value: float
    spread: float


@dataclass(frozen=True)
class Parts:
    """A statistic that is the mean of its values on parts of the images ``(P,)``."""

    parts: np.ndarray

    @property
    def value(self) -> float:
        return float(self.parts.mean())


def moments(features: np.ndarray) -> Moments:
    """Mean and unbiased covariance of features ``(N, D)``.

    The sums are taken around the first block's mean: features far from zero lose no digits.
    """
    if len(features) < 2:
        raise ValueError("a covariance needs two vectors at least")
    shift = np.asarray(features[:_ROWS], np.float64).mean(axis=0)
    total = np.zeros(features.shape[1])
    products = np.zeros((features.shape[1],) * 2)
    for block in _blocks(features):
        centred = block - shift
        total += centred.sum(axis=0)
        products += centred.T @ centred
    n = len(features)
    offset = total / n
    return Moments(n, shift + offset, (products - n * np.outer(offset, offset)) / (n - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """``|μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½)`` (Heusel et al. 2017, equation 6).

    The trace of the root is the sum of the roots of the eigenvalues of ``Rᵀ Σ_b R`` with ``Σ_a = R Rᵀ``: symmetric, so
    no complex numbers appear, and a singular covariance only makes R thinner.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    root = vectors[:, kept] * np.sqrt(values[kept])  # (D, rank)
    inner = np.linalg.eigvalsh(root.T @ b.covariance @ root)
    inner = inner[inner > inner[-1] * len(inner) * np.finfo(np.float64).eps] if len(inner) else inner
    difference = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(inner).sum()
    return float(difference @ difference + traces)


def frechet_jackknife(features: np.ndarray, reference: Moments, groups: int = 10) -> np.ndarray:
    """Fréchet distances ``(groups,)``, each without every `groups`-th image: for standard errors, also of ratios.

    With the same seeds the same group of two models holds the same images' noise, so that a ratio's error is paired.
    """
    numbers = np.arange(len(features)) % groups
    return np.array([frechet_distance(moments(np.asarray(features)[numbers != g]), reference) for g in range(groups)])


def frechet_infinity(features: np.ndarray, reference: Moments, points: int = 8, seed: int = 0) -> Extrapolated:
    """The Fréchet distance extrapolated to infinitely many images (Chong and Forsyth 2020).

    The bias falls as 1/N: a line through the distances of subsets of growing size, read off at 1/N = 0. It removes the
    bias of the evaluated images, not of the reference, which is whole each time.

    The intercept is a sum of the distances with weights ``c_k``. To first order each distance moves by the mean
    influence of its subset's images, so that image i counts with ``w_i = Σ_k c_k [i in subset k] / n_k`` in place of
    ``1 / N``: the error grows by ``√(N Σ w_i²)``, and two models share as much of it as of the plain distance's.
    """
    count = len(features)
    order = np.random.default_rng(seed).permutation(count)
    sizes = np.linspace(max(count // 2, 2), count, points).astype(int)
    distances = [frechet_distance(moments(np.asarray(features)[np.sort(order[:n])]), reference) for n in sizes]
    weights = np.linalg.pinv(np.stack([np.ones(points), 1 / sizes], axis=1))[0]  # (points,), sum 1
    influence = ((np.arange(count) < sizes[:, None]) * (weights / sizes)[:, None]).sum(axis=0)  # (N,)
    return Extrapolated(float(weights @ distances), float(np.sqrt(count * np.square(influence).sum())))


@dataclass(frozen=True)
class KernelDistance:
    """KID: the unbiased squared maximum mean discrepancy, with what its standard error is made of.

    Attributes:
        value: of the U-statistic over all images, no random subsets.
        influence: of each evaluated image ``(N,)``, mean 0: how far it moves the value, times N, to first order (the
            U-statistic's projection).
        reference_influence: of each reference image ``(M,)``.
    """

    value: float
    influence: np.ndarray
    reference_influence: np.ndarray


def kernel_distance(features: np.ndarray, reference: np.ndarray, within: np.ndarray | None = None) -> KernelDistance:
    """KID (Bińkowski et al. 2018): MMD² with the kernel ``(x·y / D + 1)³``, unbiased.

    Args:
        features: of the evaluated images ``(N, D)``.
        reference: of the real ones ``(M, D)``.
        within: `kernel_means` of the reference, if they are known.
    """
    own = kernel_means(features)  # (N,)
    own_reference = kernel_means(reference) if within is None else within  # (M,)
    rows, columns = _kernel_sums(features, reference)
    between, between_reference = rows / len(reference), columns / len(features)
    value = own.mean() + own_reference.mean() - 2 * between.mean()
    h, h_reference = 2 * (own - between), 2 * (own_reference - between_reference)
    return KernelDistance(float(value), h - h.mean(), h_reference - h_reference.mean())


def kernel_means(x: np.ndarray) -> np.ndarray:
    """The mean kernel of each image with the others of its set ``(N,)``."""
    if len(x) < 2:
        raise ValueError("KID needs two images at least on either side")
    diagonal = np.concatenate([((block**2).sum(axis=1) / x.shape[1] + 1) ** 3 for block in _blocks(x)])
    return (_kernel_sums(x, x)[0] - diagonal) / (len(x) - 1)


def _kernel_sums(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column sums of the kernel of x with y."""
    rows, columns = np.zeros(len(x)), np.zeros(len(y))
    for first, block in _numbered_blocks(x):
        for start, other in _numbered_blocks(y):
            kernel = (block @ other.T / x.shape[1] + 1) ** 3
            rows[first : first + len(block)] += kernel.sum(axis=1)
            columns[start : start + len(other)] += kernel.sum(axis=0)
    return rows, columns


@dataclass(frozen=True)
class PrecisionRecall:
    """For each image whether it counts, bool ``(N,)`` and ``(M,)``: precision and recall are their means."""

    precise: np.ndarray
    recalled: np.ndarray


def precision_recall(
    features: np.ndarray, reference: np.ndarray, k: int = 3, reference_radii: np.ndarray | None = None
) -> PrecisionRecall:
    """Precision and recall by k-nearest-neighbour manifolds (Kynkäänniemi et al. 2019).

    An evaluated image is precise if it lies within the ball of any real image that reaches to that one's k-th
    neighbour; a real image is recalled if it lies within such a ball of an evaluated one.

    Args:
        features: of the evaluated images ``(N, D)``.
        reference: of the real ones ``(M, D)``.
        k: the neighbour that a ball reaches to.
        reference_radii: `neighbour_radii` of the reference, if they are known.

    Raises:
        ValueError: if a set has no more than k images.
    """
    if min(len(features), len(reference)) <= k:
        raise ValueError(f"precision and recall with k = {k} need more than {k} images on either side")
    radii = neighbour_radii(features, k)
    reference_radii = neighbour_radii(reference, k) if reference_radii is None else reference_radii
    precise, recalled = np.zeros(len(features), bool), np.zeros(len(reference), bool)
    for first, block in _numbered_blocks(features):
        rows = slice(first, first + len(block))
        for start, other in _numbered_blocks(reference):
            columns = slice(start, start + len(other))
            distances = _squared_distances(block, other)
            precise[rows] |= (distances <= reference_radii[columns]).any(axis=1)
            recalled[columns] |= (distances <= radii[rows, None]).any(axis=0)
    return PrecisionRecall(precise, recalled)


def inception_score(logits: np.ndarray, splits: int = 10) -> Parts:
    """``exp E KL(p(y|x) ‖ p(y))`` (Salimans et al. 2016), the mean over splits in the images' order.

    Args:
        logits: ``(N, classes)``.
        splits: parts that the images are cut into; fewer if there are fewer images.

    Returns:
        the splits' scores.
    """
    scores = []
    for part in np.array_split(np.asarray(logits, np.float64), min(splits, len(logits))):
        log_p = part - part.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        log_marginal = np.log(p.mean(axis=0, keepdims=True) + np.finfo(np.float64).tiny)
        scores.append(np.exp((p * (log_p - log_marginal)).sum(axis=1).mean()))
    return Parts(np.array(scores))


def neighbour_radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each vector to its k-th nearest other one."""
    radii = []
    for _, block in _numbered_blocks(x):
        nearest = np.zeros((len(block), 0))
        for other in _blocks(x):
            nearest = np.concatenate([nearest, _squared_distances(block, other)], axis=1)
            if nearest.shape[1] > k + 1:
                nearest = np.partition(nearest, k, axis=1)[:, : k + 1]
        radii.append(np.sort(nearest, axis=1)[:, k])  # the nearest of all is the vector itself
    return np.concatenate(radii)


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    products = x @ y.T
    return np.maximum((x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None] - 2 * products, 0)


def _blocks(features: np.ndarray) -> Iterator[np.ndarray]:
    for _, block in _numbered_blocks(features):
        yield block


def _numbered_blocks(features: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
    for first in range(0, len(features), _ROWS):
        yield first, np.asarray(features[first : first + _ROWS], np.float64)

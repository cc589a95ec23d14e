"""Reference statistics in the form that pytorch-fid and others exchange: an .npz of ``mu`` and ``sigma``."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import numpy as np

from slimdpm.metrics.distances import Moments
from slimdpm.metrics.extractors import MOST_FEATURES
from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.files import atomic_file


def save_moments(path: Path, moments: Moments) -> None:
    """Write ``mu (D,)`` and ``sigma (D, D)``, float64."""
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, mu=moments.mean, sigma=moments.covariance)


def load_moments(path: Path) -> Moments:
    """Read ``mu`` and ``sigma``; how many images they are of is not in the file.

    Raises:
        SlimdpmError: if it is missing, has other arrays, or is no npz file. Pickled arrays are refused.
    """
    if not path.is_file():
        raise SlimdpmError(f"{path} does not exist")
    with blamed(f"{path} holds no mu and sigma as pytorch-fid writes them"):
        with ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > 8 * MOST_FEATURES * (MOST_FEATURES + 1) + 2**20:
            raise ValueError(f"it unpacks to {size:,} bytes, {MOST_FEATURES:,} features are the most")
        with np.load(path, allow_pickle=False) as arrays:
            mean, covariance = arrays["mu"], arrays["sigma"]
        if mean.dtype.kind not in "fiu" or covariance.dtype.kind not in "fiu":
            raise ValueError(f"they are of the types {mean.dtype} and {covariance.dtype}")
        mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise SlimdpmError(
            f"{path}: mu has the shape {mean.shape}, sigma {covariance.shape}; (D,) and (D, D) are needed"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise SlimdpmError(f"{path}: mu or sigma is not finite")
    spread = np.diagonal(covariance)
    uneven = abs(covariance - covariance.T).max(initial=0) > 1e-3 * spread.max(initial=0)
    if not len(mean) or uneven or spread.min() < 0 or max(abs(mean).max(), spread.max()) > 1e30:
        raise SlimdpmError(f"{path}: sigma is no covariance, symmetric and positive, or the values are beyond reason")
    return Moments(0, mean, covariance)

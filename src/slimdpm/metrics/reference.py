"""Reference statistics in the form that pytorch-fid and others exchange: an .npz of ``mu`` and ``sigma``."""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from slimdpm.errors import SlimdpmError
from slimdpm.files import atomic_file
from slimdpm.metrics.distances import Moments


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
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("it is a single array")
        with loaded as archive:
            mean, covariance = np.asarray(archive["mu"], np.float64), np.asarray(archive["sigma"], np.float64)
    except (ValueError, OSError, EOFError, KeyError, BadZipFile) as error:
        raise SlimdpmError(f"{path} holds no mu and sigma as pytorch-fid writes them: {error}") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise SlimdpmError(
            f"{path}: mu has the shape {mean.shape}, sigma {covariance.shape}; (D,) and (D, D) are needed"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise SlimdpmError(f"{path}: mu or sigma is not finite")
    return Moments(0, mean, covariance)

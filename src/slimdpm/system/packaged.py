"""What comes with the package, under names that need no network: the folders below ``assets/``.

One with a ``model_index.json`` is a pipeline: ``slimdpm:garments-teacher``. One with tar files is data: its
``train.tar`` is ``slimdpm:garments``, its ``test.tar`` ``slimdpm:garments-test``.
"""

from __future__ import annotations

from pathlib import Path

from slimdpm.system.errors import SlimdpmError

ASSETS = Path(__file__).parents[1] / "assets"
PREFIX = "slimdpm:"


def pipelines() -> dict[str, Path]:
    """The folders of pipelines by name."""
    found = {f"{PREFIX}{index.parent.name}": index.parent for index in sorted(ASSETS.glob("*/model_index.json"))}
    return {"demo:teacher": ASSETS / "demo-teacher", **found}


def data_sets() -> dict[str, Path]:
    """The tar files of images by name."""
    files = sorted(ASSETS.glob("*/*.tar"))
    return {PREFIX + (f.parent.name if f.stem == "train" else f"{f.parent.name}-{f.stem}"): f for f in files}


def packaged_pipeline(source: str | Path) -> Path | None:
    """The folder of a pipeline that comes with the package; None for a source of another kind.

    Raises:
        SlimdpmError: for an unknown name.
    """
    return _found(str(source), pipelines(), "pipeline")


def packaged_data(path: str) -> Path | None:
    """The tar file of images that come with the package; None for data of another kind.

    Raises:
        SlimdpmError: for an unknown name.
    """
    return _found(path, data_sets(), "data set")


def _found(name: str, known: dict[str, Path], what: str) -> Path | None:
    if name not in known and name.startswith(PREFIX):
        raise SlimdpmError(
            f"no {what} of slimdpm's own is called {name}: pipelines are {', '.join(pipelines())}; data sets are "
            f"{', '.join(data_sets())}"
        )
    return known.get(name)

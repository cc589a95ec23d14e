"""``slimdpm evaluate``: how good the samples of one or more models are, and where in the spectrum they fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from os.path import isdir
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from slimdpm.conditioning import Request
from slimdpm.data.dataset import Decoder, Images, prepare_images
from slimdpm.data.open_source import open_source
from slimdpm.data.sources import Source
from slimdpm.metrics import distances
from slimdpm.metrics.collect import Generated, Given, ImageSet, collect, pictures_of
from slimdpm.metrics.extractors import Extractor, load_extractor
from slimdpm.metrics.moments_files import load_moments, save_moments
from slimdpm.metrics.pairs import alike, followed
from slimdpm.metrics.scores import Evaluation, check_count, check_moments, score, tables
from slimdpm.pipelines.sampling import probe
from slimdpm.pipelines.shell import shell_of
from slimdpm.pipelines.teacher import open_pipeline
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.files import check_writable, write_csv, write_json
from slimdpm.system.machine import machine_facts
from slimdpm.system.packaged import data_sets, pipelines
from slimdpm.system.processes import pick_device, processes
from slimdpm.system.progress import Display
from slimdpm.system.shared_work import check_folder, claim
from slimdpm.system.sizes import Size, briefly, sides
from slimdpm.system.tensor_store import Store

_NOTHING = (
    "nothing to measure against: give --against DATA, --reference-stats FILE for the FID alone, or several pipelines "
    "of one kind, to see how closely they follow the first"
)


@dataclass(frozen=True)
class Settings:
    """What an evaluation is made with; see the command line's help.

    Attributes:
        extractor: of the features, see `slimdpm.metrics.extractors.load_extractor`.
        inception_weights: a file; None downloads it.
        steps, scheduler, seed: of the samples.
        size: images' size in pixels; None is the first model's own.
        interpolation: of the reference's resize.
        guidance: of class-conditional and text-to-image pipelines; None is each one's own.
        workers: processes that decode the reference.
    """

    count: int = 10_000
    extractor: str = "inception"
    inception_weights: Path | None = None
    steps: int = 50
    scheduler: str | None = None
    seed: int = 0
    size: Size | None = None
    interpolation: str = "bilinear"
    replicates: int = 500
    guidance: float | None = None
    device: str | None = None
    workers: int = 2


def evaluate(
    models: Sequence[str],
    against: Any,
    folder: str | Path,
    settings: Settings | None = None,
    *,
    reference_moments: Path | None = None,
    write_moments: Path | None = None,
    display: Display | None = None,
) -> Evaluation:
    """Measure models against real images, and how closely they follow the first of them; write ``results.json`` and
    ``results.csv``.

    What is in the folder already is not made again.

    Args:
        models: run folders, pipelines, or data (folders of images, .npz, .npy) that stand for samples.
        against: the real images, whatever `open_source` takes; None if only their moments are known, or nothing but
            how closely pipelines follow the first is asked for.
        reference_moments: an .npz of ``mu`` and ``sigma`` for the Fréchet distance, instead of the real images' own.
        write_moments: where to write those of the real images.

    Raises:
        SlimdpmError: for what cannot be opened, compared or written, before anything is made.
    """
    settings, display, folder = settings or Settings(), display or Display(), Path(folder).expanduser()
    judged = against is not None or reference_moments is not None
    if (not judged and len(models) < 2) or (against is None and write_moments is not None):
        raise SlimdpmError(_NOTHING)
    # All that can be wrong is found before anything is made.
    check_count("each model", settings.count)
    if processes().is_main_process:
        check_folder(folder, "evaluation", "results.json", "*/locks", "*/*/locks")
    if write_moments is not None:
        check_writable(write_moments)
    moments = load_moments(reference_moments) if reference_moments else None
    real_source = open_source(against) if against is not None else None
    place = pick_device(settings.device)
    opened, size, channels = _open_models(models, settings, place)
    for label, data in {"real": real_source, **opened}.items():
        if data is not None and not isinstance(data, DiffusionPipeline):
            check_count(label, len(data))
    sampled = _sampled(opened, real_source, settings)
    extractor = _extractor(settings, moments, (*sides(size), channels), place) if judged else None
    if not judged and (len(sampled) < len(opened) or not alike([*sampled.values()])):
        raise SlimdpmError(_NOTHING)
    # Of the processes of one launch the first holds the folder against others.
    with claim(folder) if processes().is_main_process else nullcontext():
        decode = partial(_decoded, Decoder(size, channels, "center", settings.interpolation), folder, settings, display)
        sets: list[ImageSet] = [
            sampled[label]
            if isinstance(model, DiffusionPipeline)
            else Given(label, decode(model), settings.count, settings.seed)
            for label, model in opened.items()
        ]
        options = {"replicates": settings.replicates, "seed": settings.seed}
        real = None
        if extractor is None:
            result = Evaluation({images.name: {} for images in sets})
            pictures: dict[str, Store | None] = {images.name: pictures_of(images, folder, display) for images in sets}
        else:
            if real_source is not None:
                real = collect(Given("real", decode(real_source), seed=settings.seed), folder, extractor, display)
            collected = [collect(images, folder, extractor, display) for images in sets]
            result = score(collected, real, moments, **options, display=display)
            pictures = {found.name: found.pictures for found in collected}
        result.followed = followed(sets, pictures, **options)
        result.facts = _facts(settings, extractor, [*sets, *([real.images] if real else [])])
        if processes().is_main_process:
            _write(result, folder)
            if write_moments is not None and real is not None:
                save_moments(write_moments, distances.moments(real.features()))
        return result


def _sampled(
    opened: Mapping[str, DiffusionPipeline | Source], real: Source | None, settings: Settings
) -> dict[str, Generated]:
    """What the pipelines among the models make."""
    sampler = (settings.count, settings.steps, settings.scheduler, settings.seed)
    pipelines = {label: model for label, model in opened.items() if isinstance(model, DiffusionPipeline)}
    return {
        label: Generated(label, pipeline, *sampler, _request(pipeline, real, settings))
        for label, pipeline in pipelines.items()
    }


def _extractor(
    settings: Settings, moments: distances.Moments | None, shape: tuple[int, ...], place: torch.device
) -> Extractor:
    """What makes features of images of this shape, tried on one; the reference's moments are of such features."""
    extractor = load_extractor(settings.extractor, weights=settings.inception_weights, device=place)
    check_moments(moments, extractor(np.full((1, *shape), 128, np.uint8))[0], extractor)
    return extractor


def _request(pipeline: DiffusionPipeline, real: Source | None, settings: Settings) -> Request:
    """What a model's samples show: classes or captions drawn from those of the real images, if these have any."""
    conditioning, request = shell_of(pipeline).conditioning, Request(guidance=settings.guidance)
    conditions = conditioning.read(real)[1] if real is not None and conditioning.knows(real) else None
    if conditions is not None:
        drawn = np.random.default_rng(settings.seed).integers(len(conditions), size=settings.count)
        request = conditioning.ask(request, [conditions[i] for i in drawn])
    conditioning.facts(request)  # what cannot be asked for is an error now
    return request


def _write(result: Evaluation, folder: Path) -> None:
    write_json(folder / "results.json", result.as_json())
    write_csv(folder / "results.csv", [row for headings, rows in tables(result) for row in (headings, *rows, [])])


def _open_models(
    models: Sequence[str], settings: Settings, place: Any
) -> tuple[dict[str, DiffusionPipeline | Source], Size, int]:
    """Pipelines and sources by label, and the images' size and channels, which all must share."""
    if len(set(models)) < len(models):
        raise SlimdpmError("a model is given twice")
    opened: dict[str, DiffusionPipeline | Source] = {}
    size, channels = settings.size, 3
    for name, label in zip(models, _labels(models), strict=True):
        if _is_data(name):
            if size is None:
                raise SlimdpmError(f"{name} is data: put a pipeline first, or give --size")
            opened[label] = open_source(name)
            continue
        pipeline = open_pipeline(name).to(place)
        probe(pipeline, settings.scheduler, settings.steps, name)
        shell = shell_of(pipeline)
        if size is not None and shell.image_size != size:
            raise SlimdpmError(
                f"{name} makes images of {briefly(shell.image_size)} pixels, not {briefly(size)}: "
                "compare models of one size"
            )
        if any(isinstance(m, DiffusionPipeline) for m in opened.values()) and shell.image_channels != channels:
            raise SlimdpmError(f"{name} makes images of {shell.image_channels} channels, the others of {channels}")
        size, channels = shell.image_size, shell.image_channels
        opened[label] = pipeline
    assert size is not None
    return opened, size, channels


def _labels(models: Sequence[str]) -> list[str]:
    """Short names: the last parts of the paths, as many as tell them apart."""
    paths = [Path(name).parts for name in models]
    for length in range(1, max(map(len, paths)) + 1):
        labels = ["/".join(parts[-length:]) for parts in paths]
        if len(set(labels)) == len(labels) and "real" not in labels:
            return labels
    return list(models)


def _is_data(name: str) -> bool:
    if name in pipelines():
        return False
    path = Path(name).expanduser()
    if path.suffix in (".npz", ".npy", ".tar") or name.startswith(("hf:", "demo:")) or name in data_sets():
        return True
    return isdir(path) and not any((path / part / "model_index.json").exists() for part in (".", "student"))


def _decoded(decoder: Decoder, folder: Path, settings: Settings, display: Display, source: Source) -> Images:
    """A source's squares, as in training: shorter side to the size, centre crop."""
    with processes().main_process_first():  # one process decodes, the others find the cache
        images = prepare_images(source, decoder, cache=folder / "cache", workers=settings.workers, display=display)
    if broken := images.report_broken():
        display.say(broken)
    return images


def _facts(settings: Settings, extractor: Extractor | None, sets: Sequence[ImageSet]) -> dict[str, Any]:
    """What a reader needs to make the figures again."""
    return {
        **({"extractor": extractor.name} if extractor else {}),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()},
        "images": {images.name: len(images) for images in sets},
        "preprocessing": f"shrunk to cover the models' size ({settings.interpolation}, antialiased), center crop",
        "intervals": f"95 %, {settings.replicates} bootstrap draws of images and reference; of the images alone for "
        "the Fréchet distances, the Inception Score (10 groups) and the difference of pixels",
        "hardware": machine_facts(),
    }

"""``slimdpm analyze``: section 3 of the paper as figures with their numbers, for a run or a pipeline of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from slimdpm.analysis.observation import Observation, observe
from slimdpm.analysis.sections import (
    Section,
    data_section,
    denoiser_section,
    gates_section,
    sizes_section,
    theory_section,
)
from slimdpm.conditioning import Conditioning, Request
from slimdpm.data.dataset import Decoder, Images, prepare_images
from slimdpm.data.images import to_model_range
from slimdpm.data.open_source import open_source
from slimdpm.method.cost import measure_model
from slimdpm.metrics.spectrum import Spectrum, radial_spectrum, ring_frequencies, ring_powers
from slimdpm.pipelines.sampling import probe, sample_images
from slimdpm.pipelines.shell import Shell, network_of, shell_of
from slimdpm.pipelines.teacher import open_pipeline
from slimdpm.report.figures import svg_of
from slimdpm.report.page import put_analysis, template
from slimdpm.run_folder import RunFolder
from slimdpm.system.documents import read_text
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.files import atomic_file, write_csv, write_text
from slimdpm.system.machine import machine_facts
from slimdpm.system.processes import pick_device
from slimdpm.system.progress import Display
from slimdpm.system.shared_work import check_folder
from slimdpm.system.sizes import Size, briefly

LEVELS = 17  # timesteps that are looked at


@dataclass(frozen=True)
class Settings:
    """What an analysis is made with.

    Attributes:
        count: real images for the data's spectrum.
        samples: of each network, for its spectrum; and real ones that are noised for the denoisers.
        steps, scheduler, seed: of the samples; without a scheduler it is the run's own, or DDIM.
        device: where to compute; None is the best there is.
    """

    count: int = 1000
    samples: int = 64
    steps: int = 25
    scheduler: str | None = None
    seed: int = 0
    device: str | None = None


def analyze(
    source: str,
    against: str,
    folder: str | Path | None = None,
    settings: Settings | None = None,
    *,
    compare: Sequence[str] = (),
    display: Display | None = None,
) -> Path:
    """Write the figures (PNG, SVG), their numbers (CSV) and a page.

    Args:
        source: a run folder, whose report gets the figures too, or a pipeline.
        folder: where to; by default ``analysis/`` in the run's folder, or here.
        compare: further networks for the comparison of sizes.

    Returns:
        the page: the run's report, or a page of its own.
    """
    settings, display = settings or Settings(), display or Display()
    run = RunFolder(source) if (Path(source).expanduser() / "recipe.yaml").is_file() else None
    folder = Path(folder) if folder else run.analysis if run else Path("analysis")
    check_folder(folder, "figures of slimdpm analyze", "sections.html")
    if settings.scheduler is None:
        settings = replace(settings, scheduler=run.recipe().samples.scheduler if run else "ddim")
    networks, main = _load(source, run, compare, settings)
    shell = shell_of(networks[main])
    images, conditions = _real_images(against, shell, settings, display)
    sections = [_drawn(s) for s in _sections(networks, main, shell, images, conditions, settings, display)]
    facts = {
        "data": against,
        "seed": str(settings.seed),
        "edges": "a Hann window over each image, its mean taken off",
        **machine_facts(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for section in sections:
        _write(section, folder)
    in_run = run is not None and folder == run.analysis and run.report.exists()
    values = {"sections": sections, "facts": facts, "title": f"Analysis of {Path(source).name}"}
    write_text(folder / "sections.html", template("analysis.html.j2").render(page=False, **values))
    if in_run and run is not None:
        put_analysis(run.report, read_text(folder / "sections.html"))
        return run.report
    write_text(folder / "report.html", template("analysis.html.j2").render(page=True, **values))
    return folder / "report.html"


def _load(
    source: str, run: RunFolder | None, compare: Sequence[str], settings: Settings
) -> tuple[dict[str, DiffusionPipeline], str]:
    """Pipelines by label: a run's teacher first if it has one to load, then the network itself, then the others.

    Also the label of the network itself.
    """
    networks: dict[str, DiffusionPipeline] = {}
    device = pick_device(settings.device)
    label = Path(source).name or source
    recipe = run.recipe() if run else None
    if recipe is not None and recipe.task == "slim" and recipe.teacher:
        label = "student"
        with suppress(SlimdpmError):  # a teacher that was in memory, or has moved: the analysis does without
            networks["teacher"] = open_pipeline(recipe.teacher)
    networks[label] = open_pipeline(source)
    for other in compare:
        name = Path(other).name
        networks[name if name not in networks else other] = open_pipeline(other)
    sizes = {name: shell_of(p).image_size for name, p in networks.items()}
    sizes["teacher"] = sizes[label]  # a run may be at another size than its teacher's own
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {briefly(size)}" for name, size in sizes.items())
        raise SlimdpmError(f"the networks make images of different sizes: {listed}")
    for name, pipeline in networks.items():
        probe(pipeline, settings.scheduler, settings.steps, name)
    return {name: p.to(device) for name, p in networks.items()}, label


def _real_images(
    against: str, shell: Shell, settings: Settings, display: Display
) -> tuple[np.ndarray, Sequence | None]:
    """uint8 ``(N, H, W, C)``, drawn by the seed, and their conditions if the network is told of any."""

    source = open_source(against)
    conditions = shell.conditioning.read(source)[1]
    shell.conditioning.facts(shell.conditioning.ask(Request(), conditions or ()))  # an error now if it cannot be asked
    decoder = Decoder(shell.image_size, shell.image_channels)
    images: Images = replace(prepare_images(source, decoder, workers=2, display=display), conditions=conditions)
    if broken := images.report_broken():
        display.say(broken)
    chosen = np.random.default_rng(settings.seed).permutation(len(images))[: settings.count]
    if len(chosen) < 2:
        raise SlimdpmError(f"{against} holds {len(chosen)} readable image; a spectrum needs two at least")
    told = None if conditions is None else [images.condition(int(i)) for i in chosen]
    return np.stack([images.square(int(i)) for i in chosen]), told


def _sections(
    networks: dict[str, DiffusionPipeline],
    main: str,
    shell: Shell,
    images: np.ndarray,
    conditions: Sequence | None,
    settings: Settings,
    display: Display,
) -> list[Section]:
    process = shell.process
    # Closer together towards the image, where the details appear.
    timesteps = np.unique((np.linspace(0.02, 1, LEVELS) ** 1.5 * (len(process) - 1)).round().astype(int))
    alpha_bar = process.alphas_cumprod.numpy()[timesteps]
    clean = _clean(shell, images, networks[main].device)
    spectrum = _spectrum(clean)
    seen = clean[: settings.samples]
    told = None if conditions is None else conditions[: len(seen)]
    observed = _observe(networks, main, shell.image_size, seen, told, timesteps, settings, display)
    what = "real images" if shell.autoencoder is None else "real images' latents, which is what the U-Net sees"
    sampled = _sample(networks, shell, conditions, settings, display)
    sampler = f"{settings.scheduler}, {settings.steps} steps, seed {settings.seed}"
    return [
        data_section(spectrum, len(clean), what),
        theory_section(spectrum, alpha_bar, timesteps),
        denoiser_section(_spectrum(seen), alpha_bar, observed, len(seen)),
        sizes_section(radial_spectrum(images), sampled, settings.samples, sampler),
        gates_section(observed[main]),
    ]


def _clean(shell: Shell, images: np.ndarray, device: torch.device) -> Tensor:
    """What the U-Net sees of the images, ``(N, C, H, W)``."""
    pixels = to_model_range(torch.from_numpy(images).permute(0, 3, 1, 2))  # (N, C, H, W)
    parts = [shell.encode(part.to(device)).cpu() for part in pixels.split(32)]
    return torch.cat(parts)


def _spectrum(samples: Tensor) -> Spectrum:
    arrays = (part.permute(0, 2, 3, 1).numpy() for part in samples.split(64))
    power = np.concatenate([ring_powers(part) for part in arrays]).mean(axis=0)
    return Spectrum(ring_frequencies(min(samples.shape[-2:])), power)


def _observe(
    networks: dict[str, DiffusionPipeline],
    main: str,
    size: Size,
    clean: Tensor,
    conditions: Sequence | None,
    timesteps: np.ndarray,
    settings: Settings,
    display: Display,
) -> dict[str, Observation]:
    """The teacher, if there is one, and the network itself."""
    observed = {}
    for name in dict.fromkeys(n for n in ("teacher", main) if n in networks):
        pipeline, shell = networks[name], shell_of(networks[name]).sized(size)
        network = network_of(pipeline)
        with display.task(f"denoising with {name}", len(clean) * len(timesteps), unit="samples") as task:
            observed[name] = observe(
                network,
                shell.process,
                clean,
                [int(t) for t in timesteps],
                seed=settings.seed,
                inputs=partial(_inputs, shell.conditioning, conditions, network.device),
                progress=task.advance,
            )
    return observed


def _inputs(
    conditioning: Conditioning, conditions: Sequence | None, device: torch.device, numbers: slice
) -> dict[str, Any]:
    """What the real samples of these numbers give a network beside themselves."""
    if conditions is None:
        return {}
    request = conditioning.ask(Request(guidance=1), conditions[numbers])
    return conditioning.sampling_inputs(range(len(conditions[numbers])), request, device).given


def _sample(
    networks: dict[str, DiffusionPipeline],
    shell: Shell,
    conditions: Sequence | None,
    settings: Settings,
    display: Display,
) -> dict[str, tuple[float, Spectrum]]:
    """MACs and the spectrum of samples of each network, all from the same noise."""
    found = {}
    for name, pipeline in networks.items():
        with display.task(f"sampling {name}", settings.samples, unit="images") as task:
            progress: Callable[[int], None] = task.advance
            options: dict[str, Any] = {"steps": settings.steps, "scheduler": settings.scheduler, "seed": settings.seed}
            options["size"] = shell.image_size
            conditioning = shell_of(pipeline).conditioning
            request = Request() if conditions is None else conditioning.ask(Request(), conditions)
            samples = sample_images(pipeline, settings.samples, request=request, progress=progress, **options)
        macs = measure_model(network_of(pipeline), size=shell.size, tokens=conditioning.tokens).macs
        found[name] = (float(macs), radial_spectrum(samples))
    return found


def _drawn(section: Section) -> Section:
    return replace(section, svg=svg_of(section.figure)) if section.figure is not None else section


def _write(section: Section, folder: Path) -> None:
    """``KEY.png``, ``KEY.svg`` and ``KEY.csv``."""
    if section.figure is None:
        return
    with atomic_file(folder / f"{section.key}.png") as temporary:
        section.figure.savefig(temporary, format="png", dpi=200)
    write_text(folder / f"{section.key}.svg", section.svg)
    write_csv(folder / f"{section.key}.csv", [section.header, *section.rows])

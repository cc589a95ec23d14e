"""One self-contained HTML page about a run: what it cost, what it learnt, what came out."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, Template, select_autoescape
from PIL import Image

from slimdpm.data.images import grid, picture, pixels, zoom_for
from slimdpm.method.cost import Cost
from slimdpm.metrics.denoising import HELD_OUT, DenoisingErrors, described_error
from slimdpm.metrics.spectrum import radial_spectrum
from slimdpm.report.figures import costs_figure, errors_figure, held_out_figure, losses_figure, spectra_figure
from slimdpm.system import amounts
from slimdpm.system.documents import read_text
from slimdpm.system.files import write_text

COLUMNS = 8  # images in a row of samples
_STRIPS = 3  # rows of noises
GALLERY_GAP = 6  # pixels between the images of a gallery's row


@dataclass(frozen=True)
class Entry:
    """A network in a report. The first entry is what the others are compared with.

    Attributes:
        name: "teacher", "lite", "spectral", ...
        samples: uint8 ``(N, H, W, C)``, image i of every entry being from the same noise.
        curve: the lines of its ``metrics.jsonl``.
        seconds: of one forward pass, batch 1, on this machine.
        errors: on images held out, if they were measured.
    """

    name: str
    cost: Cost
    samples: np.ndarray
    seconds: float
    curve: Sequence[Mapping[str, Any]] = ()
    errors: DenoisingErrors | None = None


Row = tuple[str, str, np.ndarray]  # a name, what stands beside it, and images uint8 ``(columns, H, W, C)``


@dataclass(frozen=True)
class Gallery:
    """Images in rows and columns that have names.

    Attributes:
        text: what is to be seen.
        columns: their names.
        blocks: of rows that belong together.
    """

    text: str
    columns: Sequence[str]
    blocks: Sequence[Sequence[Row]]


@dataclass(frozen=True)
class Table:
    """Figures under a title; the first column is text."""

    title: str
    text: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Report:
    """What the page shows."""

    title: str
    summary: str
    entries: Sequence[Entry]
    real: np.ndarray  # uint8 (N, H, W, C), for the spectrum
    facts: Mapping[str, str]
    recipe: str
    card: Mapping[str, str] = field(default_factory=dict)  # how a student is loaded
    student: str | None = None  # its folder
    analysis: str = ""  # HTML of `slimdpm analyze`
    notes: Sequence[str] = field(default_factory=tuple)
    gallery: Gallery | None = None  # instead of samples without names
    tables: Sequence[Table] = field(default_factory=tuple)  # below it


def template(name: str) -> Template:
    """A page's template."""
    environment = Environment(loader=PackageLoader("slimdpm.report"), autoescape=select_autoescape(["html", "j2"]))
    environment.filters |= {"parameters": amounts.parameters, "macs": amounts.macs}
    return environment.get_template(name)


def write_report(path: Path, report: Report) -> None:
    """Write the page; pictures and figures are inside it."""
    reference = report.entries[0]
    spectra = {"real images": radial_spectrum(report.real)} if len(report.real) else {}
    spectra |= {entry.name: radial_spectrum(entry.samples) for entry in report.entries}
    curves = {entry.name: entry.curve for entry in report.entries if entry.curve}
    errors = {entry.name: entry.errors for entry in report.entries if entry.errors is not None}
    measured = {name: [line for line in curve if HELD_OUT in line] for name, curve in curves.items()}
    held_out = {name: lines for name, lines in measured.items() if lines}
    page = template("report.html.j2").render(
        report=report,
        analysis=report.analysis,
        entries=report.entries,
        reference=reference,
        gallery=[] if report.gallery is None else _drawn(report.gallery),
        strips=[
            [
                (e.name, _data_url(grid(e.samples[i : i + COLUMNS], COLUMNS, zoom=zoom_for(e.samples))))
                for e in report.entries
            ]
            for i in range(0, min(_STRIPS * COLUMNS, len(reference.samples)), COLUMNS)
        ],
        real_picture=_data_url(grid(report.real[: 2 * COLUMNS], COLUMNS, zoom=zoom_for(report.real)))
        if len(report.real)
        else None,
        spectra=spectra_figure(spectra),
        costs=costs_figure(_costs(report.entries)) if len(report.entries) > 1 else None,
        losses=losses_figure(curves) if curves else None,
        held_out={
            name: f"at step {lines[-1]['step']:,}: {described_error(lines[-1])}" for name, lines in held_out.items()
        },
        held_out_figure=held_out_figure(held_out) if held_out else None,
        errors=errors,
        errors_figure=errors_figure(errors) if len(errors) > 1 else None,
    )
    write_text(path, page)


def _drawn(gallery: Gallery) -> list[list[tuple[str, str, str]]]:
    """The gallery's blocks with a picture for each row, smoothly enlarged: no pixel is of interest by itself."""

    def strip(images: np.ndarray) -> str:
        size = images.shape[2] * zoom_for(images), images.shape[1] * zoom_for(images)
        large = [picture(image).resize(size, Image.Resampling.LANCZOS) for image in images]
        return _data_url(grid(np.stack([pixels(image) for image in large]), len(large), gap=GALLERY_GAP))

    return [[(name, beside, strip(images)) for name, beside, images in block] for block in gallery.blocks]


def _costs(entries: Sequence[Entry]) -> dict[str, dict[str, float]]:
    """What each network costs, by measure and name."""
    return {
        "parameters": {entry.name: float(entry.cost.params) for entry in entries},
        "MACs": {entry.name: float(entry.cost.macs) for entry in entries},
        "milliseconds": {entry.name: entry.seconds for entry in entries},
    }


_BEGIN, _END = "<!-- analysis -->", "<!-- /analysis -->"


def put_analysis(path: Path, html: str) -> None:
    """Put an analysis into a report that is written already, in the place of an earlier one."""
    page = read_text(path)
    if _BEGIN not in page:  # a report from before there were analyses
        page = page.replace("</body>", f"{_BEGIN}{_END}\n</body>")
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    write_text(path, before + _BEGIN + html + _END + after)


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

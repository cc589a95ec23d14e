"""The parts of an analysis: a figure, its numbers, and sentences that say what the numbers show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from slimdpm.analysis import figures
from slimdpm.analysis.observation import Observation
from slimdpm.analysis.wiener import appearance, reconstruction_power, wiener_gain
from slimdpm.metrics.spectrum import Spectrum, fit_power_law
from slimdpm.system import amounts
from slimdpm.wavelet import SUBBANDS

_STILL = 0.02  # a gate that moves less than this hardly moves


@dataclass(frozen=True)
class Section:
    """One part.

    Attributes:
        figure: None if there is nothing to show.
        header, rows: the figure's numbers.
        svg: the figure, once it is drawn.
    """

    key: str
    title: str
    paragraphs: Sequence[str]
    figure: Figure | None = None
    header: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = field(default_factory=list)
    svg: str = ""


def data_section(spectrum: Spectrum, count: int, what: str) -> Section:
    law = fit_power_law(spectrum)
    fitted = law(spectrum.frequency)
    octave = 2**law.slope
    upper = spectrum.frequency > 0.25
    share = (spectrum.power * spectrum.frequency)[upper].sum() / (spectrum.power * spectrum.frequency).sum()
    return Section(
        "data",
        "The data: how rare the high frequencies are",
        [
            f"Mean power of {count} {what} at each spatial frequency, and the straight line that fits best. A "
            "frequency of 1/2 changes from pixel to pixel, 1/16 over sixteen pixels.",
            f"The power falls as frequency to the power of {law.slope:.2f} (± {law.error:.2f}): one octave higher, "
            f"{octave:.2f} of the power is left. The upper half of the frequencies holds {100 * share:.1f} % of all.",
        ],
        figures.data_figure(spectrum, law),
        ["frequency", "power", "power_law"],
        list(zip(spectrum.frequency, spectrum.power, fitted, strict=True)),
    )


def theory_section(spectrum: Spectrum, alpha_bar: np.ndarray, timesteps: np.ndarray) -> Section:
    gain = wiener_gain(spectrum.power, alpha_bar)
    restored = reconstruction_power(spectrum.power, alpha_bar) / spectrum.power
    when = _by_octave(appearance(restored * spectrum.power, spectrum.power, timesteps), spectrum.frequency)
    order = "; ".join(f"{label}: {_when(t)}" for label, t in when.items())
    return Section(
        "theory",
        "The theory: what the best linear filter restores, and when",
        [
            "Noise of one strength for all frequencies drowns the weak ones first. The Wiener filter is the best "
            "linear guess of the image from its noisy version: it lets a frequency pass where the image is stronger "
            "than the noise, and blocks it elsewhere.",
            f"On the way from noise to image, half of each octave's power is there at ({order}): low frequencies "
            "come first, the details last. A network must therefore act as a different filter at each timestep.",
        ],
        figures.theory_figure(spectrum.frequency, timesteps, gain, restored),
        ["timestep", "frequency", "gain", "restored_share"],
        _long(timesteps, spectrum.frequency, gain, restored),
    )


def denoiser_section(
    spectrum: Spectrum, alpha_bar: np.ndarray, observed: Mapping[str, Observation], count: int
) -> Section:
    timesteps = next(iter(observed.values())).timesteps
    theory = reconstruction_power(spectrum.power, alpha_bar) / spectrum.power
    shares = {name: o.power / spectrum.power for name, o in observed.items()}
    sentences = []
    for name, share in {"the Wiener filter": theory, **shares}.items():
        when = _by_octave(appearance(share * spectrum.power, spectrum.power, timesteps), spectrum.frequency)
        label, t = list(when.items())[-1]
        sentences.append(f"{name} at {_when(t)}")
    top = spectrum.frequency > 0.25
    levels = [k for k in (0, len(timesteps) // 4, len(timesteps) // 2) if k < len(timesteps)]
    gaps = []
    names = list(shares)
    if len(names) > 1:
        for k in levels:
            ratio = (shares[names[1]][k, top].mean()) / shares[names[0]][k, top].mean()
            gaps.append(f"{ratio:.2f} at t = {timesteps[k]}")
    paragraphs = [
        f"Real samples ({count}) were noised to a timestep and denoised in one step; shown is how much of each "
        "octave's power the network's guess x̂₀ holds, next to the Wiener filter for the same data. A network may know "
        "more than a linear filter: where images have structure, its lines lie above the filter's.",
        f"Half of the power of the highest octave ({label}) is there, on the way from noise to image: "
        f"{', '.join(sentences)}.",
    ]
    if gaps:
        paragraphs.append(
            f"In the highest octave the {names[1]}'s guess holds this part of the {names[0]}'s power: "
            f"{', '.join(gaps)}. Below 1 it is smoother than the other, above 1 it leaves or adds noise."
        )
    return Section(
        "denoiser",
        "The networks: which frequency appears when",
        [p[0].upper() + p[1:] for p in paragraphs],
        figures.denoiser_figure(spectrum.frequency, theory, observed, spectrum.power),
        ["timestep", "frequency", "wiener", *names],
        _long(timesteps, spectrum.frequency, theory, *shares.values()),
    )


def sizes_section(real: Spectrum, networks: Mapping[str, tuple[float, Spectrum]], count: int, sampler: str) -> Section:
    top = real.frequency > 0.25
    ratios = {name: float(np.mean(s.power[top] / real.power[top])) for name, (_, s) in networks.items()}
    ordered = sorted(networks, key=lambda name: networks[name][0])
    listed = ", ".join(f"{ratios[name]:.2f} ({name}, {amounts.macs(networks[name][0])} MACs)" for name in ordered)
    paragraphs = [
        f"Power of {count} samples of each network over that of real images, from the same noise ({sampler}). The "
        "dashed line is the real images' own: below it samples are too smooth at that frequency, above it too noisy.",
        f"In the upper half of the frequencies, shaded, the samples hold this multiple of the real power, from the "
        f"cheapest network to the dearest: {listed}.",
    ]
    if len(ordered) > 1:
        far = {name: abs(np.log(ratios[name])) for name in ordered}
        word = "further from" if far[ordered[0]] > far[ordered[-1]] else "no further from"
        paragraphs.append(f"Here the cheapest network is {word} the real images than the dearest.")
    return Section(
        "sizes",
        "Size: what cheaper networks lose",
        paragraphs,
        figures.sizes_figure(real, networks),
        ["network", "macs_conv_linear", "frequency", "power", "ratio_to_real"],
        [
            (name, int(macs), f, p, p / r)
            for name, (macs, s) in networks.items()
            for f, p, r in zip(s.frequency, s.power, real.power, strict=True)
        ],
    )


def gates_section(observation: Observation) -> Section:
    gates, timesteps = observation.gates, observation.timesteps
    if not gates:
        return Section("gates", "The gates", ["This network has no wavelet gates: its resampling is fixed."])
    third = max(1, len(timesteps) // 3)
    says = []
    for kind, names in {
        "down": [n for n in gates if "downsampl" in n],
        "up": [n for n in gates if "upsampl" in n],
    }.items():
        if not names:
            continue
        mean = np.mean([gates[n] for n in names], axis=0)  # (T, 4)
        late, early = mean[:third].mean(axis=0), mean[-third:].mean(axis=0)
        parts = [
            f"{band} {a:.2f} → {b:.2f} ({_moved(b - a)})" for band, a, b in zip(SUBBANDS, early, late, strict=True)
        ]
        says.append(f"in the {kind}sampling, from noise to image: {', '.join(parts)}")
    return Section(
        "gates",
        "The gates: which sub-bands the student lets through, and when",
        [
            "Each resampler weighs four sub-bands: LL, the coarse image, and LH, HL, HH, the details along the width, "
            "the height and both. Shown is the mean gate over channels and samples; 1 is open, 0 is shut.",
            f"Mean of the noisiest third of the timesteps against the cleanest, {'; '.join(says)}.",
            _verdict(gates, third),
        ],
        figures.gates_figure(timesteps, gates),
        ["resampler", "timestep", *SUBBANDS],
        [(n, int(t), *map(float, row)) for n, v in gates.items() for t, row in zip(timesteps, v, strict=True)],
    )


def _verdict(gates: Mapping[str, np.ndarray], third: int) -> str:
    """Do the high bands open late? In how many resamplers and bands, counted."""
    moves = np.array([v[:third, 1:].mean(axis=0) - v[-third:, 1:].mean(axis=0) for v in gates.values()])  # (R, 3)
    opens, shuts = int((moves > _STILL).sum()), int((moves < -_STILL).sum())
    return (
        f"Of the {moves.size} gates of detail bands, {opens} open towards the end by more than {_STILL}, {shuts} shut, "
        f"and {moves.size - opens - shuts} hardly move."
    )


def _moved(change: float) -> str:
    return "opens" if change > _STILL else "shuts" if change < -_STILL else "hardly moves"


def _when(timestep: float) -> str:
    return f"t = {timestep:.0f}" if np.isfinite(timestep) else "no timestep that was looked at"


def _by_octave(values: np.ndarray, frequency: np.ndarray) -> dict[str, float]:
    found = {}
    for label, inside in figures.bands_of(frequency):
        known = values[inside][np.isfinite(values[inside])]
        found[label] = float(known.mean()) if len(known) else float("nan")
    return found


def _long(timesteps: np.ndarray, frequency: np.ndarray, *tables: np.ndarray) -> list[tuple]:
    return [
        (int(t), float(f), *(float(table[i, j]) for table in tables))
        for i, t in enumerate(timesteps)
        for j, f in enumerate(frequency)
    ]

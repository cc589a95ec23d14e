"""A sampler as a table of numbers, read off diffusers' own scheduler.

Between two calls of the network every sampler that slimdpm offers is linear: in the sample ``x``, in what the network
said of the clean sample now and before, and in fresh noise. A row of the table holds the coefficients of one step, so
that a runner in any language is one loop without a scheduler in it::

    input = scale · x                                       # what the network is given, of unit variance
    e     = network(input, t)
    x̂₀    = (input − sigma · e) / alpha                     # epsilon; v: alpha · input − sigma · e; sample: e
    x̂₀    = clip(x̂₀)                                        # where the scheduler clips
    m     = x̂₀ | (input − alpha · x̂₀) / sigma | e           # the table's "memory": clean, noise or output
    x     = x_ · x + e_ · e + Σ_j m_j · m[j steps ago] + n_ · noise

The coefficients are found by least squares on what the scheduler itself does with random numbers, and then tried on
others: a scheduler that is not of this form is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from slimdpm.method.forward_process import Process
from slimdpm.pipelines.denoise import takes_generator
from slimdpm.system.errors import SlimdpmError, blamed

MEMORIES = ("clean", "noise", "output")
# What is tried in turn: a memory, and how many steps of it. PNDM's Runge-Kutta start reaches furthest.
_FORMS = (*((memory, lags) for lags in (1, 2, 3, 4) for memory in MEMORIES), ("output", 16))
_PIXELS = 192  # random numbers that a step is probed with
_CHECKS = 64  # of them are kept back to try the coefficients on
_TOLERANCE = 1.5e-6  # of a step, relative to the largest number in it: some schedulers go on in float32
_CERTAIN = 5  # standard errors of a coefficient
_WHOLE = 1e-5  # of the whole way: what each step may be off adds up where the form is nearly right
_ENOUGH = 1e-6  # then no other form is tried

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """A row of the table; see the module's formula.

    Attributes:
        t: the timestep that the network is told.
        scale, alpha, sigma: of the network's input, of signal and of noise in it.
        x, e, n: coefficients of the sample, of the network's output, of fresh noise.
        m: of the memory, by how many steps ago; 0 is this one.
        draws: whether noise is drawn, used or not: an image's random stream goes on by it.
    """

    t: float
    scale: float
    alpha: float
    sigma: float
    x: float
    e: float
    n: float
    m: dict[int, float]
    draws: bool


@dataclass(frozen=True)
class SamplerTable:
    """A scheduler with a number of steps.

    Attributes:
        start: what noise of unit variance is multiplied by.
        prediction: what the network predicts, as diffusers calls it.
        clip: the range of x̂₀, or None.
        memory: one of `MEMORIES`.
        steps: one for each call of the network.
    """

    start: float
    prediction: str
    clip: float | None
    memory: str
    steps: tuple[Step, ...] = field(default_factory=tuple)

    def as_json(self) -> dict[str, Any]:
        return {
            **{key: value for key, value in asdict(self).items() if key != "steps"},
            "steps": [{**asdict(step), "m": {str(lag): value for lag, value in step.m.items()}} for step in self.steps],
        }


def sampler_table(scheduler: Any, steps: int) -> SamplerTable:
    """What a scheduler of diffusers does in so many steps.

    Args:
        scheduler: as `slimdpm.pipelines.sampling.make_scheduler` makes it.
        steps: as given to its ``set_timesteps``; some call the network more often.

    Raises:
        SlimdpmError: if it is not linear in the sense of this module, or cannot take so many steps.
    """
    name, found = type(scheduler).__name__, scheduler.config
    if found.get("thresholding"):
        raise SlimdpmError(f"{name} with thresholding is no table: it clips by the other pixels of the image")
    clips = found.get("clip_sample") and "clip_sample" in inspect.signature(type(scheduler).__init__).parameters
    clip = float(found.get("clip_sample_range") or 1) if clips else None
    with blamed(f"{name} cannot be written as a table of {steps} steps"):
        trace = _trace(scheduler, steps, clip)
    best: tuple[float, SamplerTable | None] = (_WHOLE, None)
    for (memory, lags), told in product(_FORMS, (False, True) if clip is not None else (False,)):
        rows = _rows(trace, memory, lags, with_output=told)
        if rows is not None:
            table = SamplerTable(float(scheduler.init_noise_sigma), trace.prediction, clip, memory, rows)
            best = min(best, (_strays(table, trace), table), key=lambda pair: pair[0])
            if best[0] <= _ENOUGH:
                break
    if best[1] is None:
        raise SlimdpmError(f"{name} cannot be exported: its steps are not linear in sample, predictions and noise")
    return best[1]


@dataclass(frozen=True)
class _Moment:
    """One call of the scheduler's step: numbers before and after, each ``(P,)``."""

    t: float
    scale: float
    alpha: float
    sigma: float
    x: Array
    e: Array
    x0: Array
    clipped: Array
    noise: Array | None
    after: Array


@dataclass(frozen=True)
class _Trace:
    prediction: str
    clip: float | None
    moments: tuple[_Moment, ...]


def _trace(scheduler: Any, steps: int, clip: float | None) -> _Trace:
    """A scheduler at work on random numbers.

    The clean sample is what is random, and the network's output follows from it: so neither is nearly the other's
    multiple at any noise level.
    """
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    process = Process.of_scheduler(scheduler)
    scheduler.set_timesteps(steps)
    extra = {"generator": generator} if takes_generator(scheduler) else {}
    sample = _pixels(rng.standard_normal(_PIXELS)) * float(scheduler.init_noise_sigma)
    moments = []
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(sample, t)
        scale = float((given * sample).sum() / (sample * sample).sum())
        alpha, sigma = _levels(scheduler, process, t)
        x0 = rng.uniform(-1.5, 1.5, _PIXELS) * (clip or 1)
        x = _numbers(sample)
        e = _output(process.prediction, scale * x, x0, alpha, sigma)
        before = generator.get_state()
        after = scheduler.step(_pixels(e), t, sample, **extra, return_dict=False)[0]
        if not after.isfinite().all():
            raise ValueError(f"what it makes of timestep {float(t):g} is not finite")
        noise = _drawn(before, generator)
        clipped = x0 if clip is None else x0.clip(-clip, clip)
        moments.append(_Moment(float(t), scale, alpha, sigma, x, e, x0, clipped, noise, _numbers(after)))
        sample = after
    return _Trace(process.prediction, clip, tuple(moments))


def _pixels(numbers: Array) -> torch.Tensor:
    """As float64, which most schedulers keep: their own float32 coefficients are then read off exactly."""
    return torch.from_numpy(numbers)[None, None, None]


def _numbers(pixels: torch.Tensor) -> Array:
    return pixels.double().numpy().ravel()


def _levels(scheduler: Any, process: Process, t: Any) -> tuple[float, float]:
    """Signal and noise in the network's input, whose squares add up to 1."""
    sigmas = getattr(scheduler, "sigmas", None)
    index = scheduler.step_index if hasattr(scheduler, "step_index") else None
    if sigmas is not None and index is None and hasattr(scheduler, "_init_step_index"):
        scheduler._init_step_index(t)
        index = scheduler.step_index
    if sigmas is None or index is None:
        alpha_bar = scheduler.alphas_cumprod[int(t)]
        return float(alpha_bar**0.5), float((1 - alpha_bar) ** 0.5)
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):  # its own rounding
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigmas[index])
        return float(alpha), float(sigma)
    sigma = float(sigmas[index])
    return 1 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5


def _output(prediction: str, given: Array, x0: Array, alpha: float, sigma: float) -> Array:
    """What a network says whose clean sample is this one."""
    if prediction == "sample":
        return x0
    if prediction == "epsilon":
        return (given - alpha * x0) / sigma
    return (alpha * given - x0) / sigma


def _drawn(before: torch.Tensor, generator: torch.Generator) -> Array | None:
    """The noise that a step has drawn; None if it drew none."""
    if torch.equal(before, generator.get_state()):
        return None
    for dtype in (torch.float64, torch.float32):
        again = torch.Generator()
        again.set_state(before)
        noise = torch.randn(1, 1, 1, _PIXELS, generator=again, dtype=dtype)
        if torch.equal(again.get_state(), generator.get_state()):
            return _numbers(noise)
    raise ValueError("it draws noise in a way of its own")


def _rows(trace: _Trace, memory: str, lags: int, *, with_output: bool) -> tuple[Step, ...] | None:
    """The table with a memory that reaches so far back; None if some step is not linear in it.

    With the output itself beside the memory: DDIM goes back to the noise that it was told, not to the clipped one's.
    """
    kept: list[Array] = []
    rows = []
    for moment in trace.moments:
        kept = [_remembered(moment, memory), *kept[: lags - 1]]
        step = _fit(moment, kept, with_output=with_output)
        if step is None:
            return None
        rows.append(step)
    return tuple(rows)


def _remembered(moment: _Moment, memory: str) -> Array:
    if memory == "clean":
        return moment.clipped
    if memory == "output":
        return moment.e
    return (moment.scale * moment.x - moment.alpha * moment.clipped) / moment.sigma


def _fit(moment: _Moment, kept: Sequence[Array], *, with_output: bool) -> Step | None:
    """The coefficients of a step, from most of the numbers and tried on the rest."""
    columns: dict[Any, Array] = {"x": moment.x}
    columns |= {"e": moment.e} if with_output else {}
    columns |= {} if moment.noise is None else {"n": moment.noise}
    columns |= dict(enumerate(kept))
    matrix = np.stack(list(columns.values()), axis=1)
    size = np.abs(matrix).max(axis=0)
    size[size == 0] = 1
    fitted = _least_squares(matrix[:-_CHECKS] / size, moment.after[:-_CHECKS])
    off = np.abs(matrix[-_CHECKS:] / size @ fitted - moment.after[-_CHECKS:]).max()
    if not off <= _TOLERANCE * _largest(moment):
        return None
    values = dict(zip(columns, (fitted / size).tolist(), strict=True))
    memories = {lag: value for lag in range(len(kept)) if (value := values[lag])}
    own = {name: values.get(name, 0.0) for name in ("x", "e", "n")}
    return Step(moment.t, moment.scale, moment.alpha, moment.sigma, m=memories, draws=moment.noise is not None, **own)


def _least_squares(matrix: Array, wanted: Array) -> Array:
    """The coefficients of a matrix's columns; those that the rounding of what is wanted leaves in doubt are 0."""
    inverse = np.linalg.pinv(matrix, rcond=1e-9)
    fitted = inverse @ wanted
    errors = np.std(matrix @ fitted - wanted) * np.linalg.norm(inverse, axis=1)
    return np.where(np.abs(fitted) > np.maximum(_CERTAIN * errors, 1e-12 * np.abs(wanted).max()), fitted, 0)


def _largest(moment: _Moment) -> float:
    """The largest number in a step: float32 errs in proportion to it. Finding x̂₀ of ε divides by a small alpha."""
    apart = moment.scale * moment.x / max(moment.alpha, 1e-3)
    return max(np.abs(part).max() for part in (moment.x, moment.after, apart))


def _strays(table: SamplerTable, trace: _Trace) -> float:
    """How far the table's way is off the scheduler's, relative to the largest number on it, for a network that finds
    the same clean samples."""
    kept: list[Array] = []
    x, largest, off = trace.moments[0].x, 0.0, 0.0
    for step, moment in zip(table.steps, trace.moments, strict=True):
        e = _output(table.prediction, step.scale * x, moment.x0, step.alpha, step.sigma)
        kept.insert(0, _remembered(replace(moment, x=x, e=e), table.memory))
        x = step.x * x + step.e * e + sum(value * kept[lag] for lag, value in step.m.items())
        x = x if moment.noise is None else x + step.n * moment.noise
        largest = max(largest, _largest(moment))
        off = max(off, np.abs(x - moment.after).max())
    return off / largest

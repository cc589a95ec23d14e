"""The paper's section 3 against planted answers: power laws, the Wiener filter, what a known denoiser restores."""

import csv
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel, VQModel
from helpers import TINY, drawn, latent_pipeline
from typer.testing import CliRunner

from slimdpm import SpectralUNet2DModel, load_pipeline
from slimdpm.analysis.analyze import Settings, analyze
from slimdpm.analysis.observation import observe
from slimdpm.analysis.wiener import appearance, reconstruction_power, wiener_gain
from slimdpm.cli.main import app
from slimdpm.method.forward_process import Process
from slimdpm.metrics.spectrum import Spectrum, fit_power_law, radial_spectrum, ring_powers
from slimdpm.recipe_file import load_recipe
from slimdpm.system.errors import SlimdpmError
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job
from slimdpm.wavelet import WaveletGate


def planted(slope, size, level=1e-2):
    """Crops of larger random fields of power ``level · f^slope``: like photographs, they do not repeat at the edges."""
    rng = np.random.default_rng(0)
    count = 80 * 32 // size
    whole = 4 * size
    radius = np.hypot(np.fft.fftfreq(whole)[:, None], np.fft.rfftfreq(whole)[None])
    radius[0, 0] = np.inf
    amplitude = np.sqrt(level * radius**slope)
    fields = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(count, whole, whole)), norm="ortho") * amplitude, norm="ortho")
    return fields[:, size : 2 * size, size : 2 * size, None]


@pytest.mark.slow
@pytest.mark.parametrize("slope", [-1, -2, -3])
def test_a_planted_power_law_is_recovered_at_any_size(slope):
    laws = [fit_power_law(radial_spectrum(planted(slope, size))) for size in (32, 64, 128)]
    for law in laws:
        assert law.slope == pytest.approx(slope, abs=0.05)
    levels = [law(np.array([0.25]))[0] for law in laws]  # the same power at the same frequency, whatever the size
    assert levels == pytest.approx([1e-2 * 0.25**slope] * 3, rel=0.05)


def test_white_noise_has_its_variance_at_every_frequency():
    noise = np.random.default_rng(0).normal(0, 0.5, (200, 32, 32, 3))
    assert ring_powers(noise).mean(axis=0)[1:] == pytest.approx(np.full(15, 0.25), rel=0.03)


def test_the_filter_is_what_least_squares_finds():
    """Gaussian signals of a known spectrum, noised; G by a regression of X_0 on X_t for each frequency."""
    rng = np.random.default_rng(0)
    power = 0.3 * np.linspace(0.02, 0.5, 6) ** -1.5
    alpha_bar = np.array([0.95, 0.5, 0.05])
    gain = wiener_gain(power, alpha_bar)
    restored = reconstruction_power(power, alpha_bar)
    complex_normal = lambda: (rng.normal(size=(400_000, 6)) + 1j * rng.normal(size=(400_000, 6))) / np.sqrt(2)  # noqa: E731
    for a, g, r in zip(alpha_bar, gain, restored, strict=True):
        x0 = complex_normal() * np.sqrt(power)
        x_t = np.sqrt(a) * x0 + np.sqrt(1 - a) * complex_normal()
        fitted = (x0 * x_t.conj()).sum(axis=0) / (np.abs(x_t) ** 2).sum(axis=0)
        np.testing.assert_allclose(g, fitted.real, rtol=0.02)
        np.testing.assert_allclose(r, (np.abs(fitted * x_t) ** 2).mean(axis=0), rtol=0.02)
    assert (restored < power).all() and (np.diff(gain, axis=1) < 0).all()


def test_frequencies_appear_in_order():
    timesteps = np.array([0, 100, 200])
    share = np.array([[1.0, 0.8, 0.4], [0.9, 0.3, 0.1], [0.6, 0.1, 0.0]])
    when = appearance(share * 7, np.full(3, 7.0), timesteps)
    assert when[:2] == pytest.approx([200, 60]) and np.isnan(when[2])


def test_a_network_that_predicts_nothing_restores_noise():
    """ε̂ = 0 makes x̂_0 = x_t / √ᾱ: its power is the data's and the noise's, known in closed form."""
    network = UNet2DModel(**TINY)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    process = Process.of_scheduler(DDPMScheduler())
    clean = torch.randn(128, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    seen = observe(network, process, clean, [100, 600])
    ratio = ((1 - process.alphas_cumprod) / process.alphas_cumprod)[[100, 600]].numpy()
    want = 1 + ratio[:, None] * np.ones((1, 7))  # the clean samples are white, of variance 1
    np.testing.assert_allclose(seen.power[:, 1:], want, rtol=0.1)
    assert seen.gates == {}


def test_gates_are_those_of_the_network():
    """Of gates that follow the content, by the formula from what comes to them: two batches at each of two levels."""
    network, came = SpectralUNet2DModel(**TINY), {}
    gates = {name: module for name, module in network.named_modules() if isinstance(module, WaveletGate)}
    for name, gate in gates.items():
        torch.nn.init.normal_(gate.excite.weight)
        gate.register_forward_pre_hook(lambda _, args, name=name: came.setdefault(name, []).append(args[0].detach()))
    process = Process.of_scheduler(DDPMScheduler())
    seen = observe(network, process, torch.randn(4, 3, 16, 16), [10, 900], batch_size=3)
    assert len(seen.gates) == len(gates) == 2  # one resampler down, one up
    for name, gate in gates.items():
        for level, found in enumerate(seen.gates[name.rpartition(".")[0]]):
            pooled = torch.cat(came[name][2 * level : 2 * level + 2]).mean(dim=(2, 3))
            hidden = torch.nn.functional.silu(pooled @ gate.squeeze.weight.T + gate.squeeze.bias)
            opened = (hidden @ gate.excite.weight.T + gate.excite.bias).sigmoid().reshape(4, 4, -1)
            np.testing.assert_allclose(found, opened.mean(dim=(0, 2)).detach(), rtol=1e-5)
            assert np.ptp(found) > 1e-3  # no band's is another's


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, teacher_folder, image_folder):
    folder = tmp_path_factory.mktemp("runs") / "slim"
    sets = ["train.steps=1", "train.batch_size=2", "samples.count=2", "samples.steps=2"]
    sets += ["student.ratio=2", "student.kind=spectral"]
    values = {"task": "slim", "teacher": str(teacher_folder), "data": {"path": str(image_folder)}}
    run_job(plan_job(load_recipe(None, sets, values=values)), folder)
    return folder


SMALL = Settings(count=12, samples=4, steps=2)


@pytest.mark.slow
def test_a_runs_report_gets_the_figures_and_keeps_the_rest(run_folder, image_folder, teacher_folder):
    before = (run_folder / "report.html").read_text()
    for drawing in (drawn, nullcontext):  # the second takes the place of the first
        with drawing():
            page = analyze(str(run_folder), str(image_folder), settings=SMALL, compare=[str(teacher_folder)])
        figures = [page.read_text(), *(file.read_text() for file in (run_folder / "analysis").glob("*.svg"))]
        assert all(("<path" in text) is (drawing is drawn) for text in figures) and len(figures) > 1
    assert page == run_folder / "report.html"
    text = page.read_text()
    for words in (
        "The data: how rare",
        "The theory",
        "which frequency appears when",
        "what cheaper networks lose",
        "The gates",
    ):
        assert text.count(f"{words}") == 1, words
    begin, end = text.index("<!-- analysis -->"), text.index("<!-- /analysis -->")
    assert text[:begin] + text[end:] == before.replace("<!-- analysis -->", "", 1)
    assert load_pipeline(run_folder) is not None
    names = {
        f"{key}.{kind}" for key in ("data", "theory", "denoiser", "sizes", "gates") for kind in ("png", "svg", "csv")
    }
    assert names <= {f.name for f in (run_folder / "analysis").iterdir()}


@pytest.mark.slow
def test_the_tables_hold_the_figures_numbers(run_folder, image_folder, tmp_path):
    analyze(str(run_folder), str(image_folder), tmp_path, SMALL)
    with (tmp_path / "data.csv").open() as file:
        rows = list(csv.DictReader(file))
    spectrum = Spectrum(*(np.array([float(r[k]) for r in rows]) for k in ("frequency", "power")))
    assert spectrum.frequency[-1] == 0.5
    assert f"{fit_power_law(spectrum).slope:.2f}" in (tmp_path / "report.html").read_text()
    with (tmp_path / "theory.csv").open() as file:
        first = next(csv.DictReader(file))
    alpha_bar = DDPMScheduler().alphas_cumprod[int(first["timestep"])].item()
    want = alpha_bar**0.5 / (alpha_bar + (1 - alpha_bar) / spectrum.power[0])
    assert float(first["gain"]) == pytest.approx(want, rel=1e-5)
    with (tmp_path / "gates.csv").open() as file:
        gates = list(csv.DictReader(file))
    assert {float(row["LL"]) > float(row["HH"]) for row in gates} == {True}  # as they start


@pytest.mark.slow
def test_a_network_without_gates_says_so(run_folder, teacher_folder, image_folder, tmp_path):
    """Also when the network that it is compared with has gates, and its folder is called teacher."""
    (tmp_path / "teacher").symlink_to(teacher_folder)
    page = analyze(str(tmp_path / "teacher"), str(image_folder), tmp_path / "a", SMALL, compare=[str(run_folder)])
    assert page == tmp_path / "a" / "report.html" and "has no wavelet gates" in page.read_text()
    assert not (tmp_path / "a" / "gates.png").exists()


@pytest.mark.slow
def test_behind_an_autoencoder_the_latents_are_analysed(image_folder, tmp_path):
    latent_pipeline(VQModel).save_pretrained(tmp_path / "ldm")
    page = analyze(str(tmp_path / "ldm"), str(image_folder), tmp_path / "a", SMALL)
    assert "latents, which is what the U-Net sees" in page.read_text().replace("&#39;", "'")
    rings = {name: len((tmp_path / "a" / f"{name}.csv").read_text().splitlines()) - 1 for name in ("data", "sizes")}
    assert rings == {"data": 4, "sizes": 8}  # half of 8 latent pixels, half of 16 pixels


def test_mistakes_of_analyze_are_one_line(teacher_folder, image_folder, tmp_path):
    for arguments, words in (
        (["none", "--against", image_folder], "none does not exist"),
        ([teacher_folder, "--against", tmp_path / "none"], "does not exist"),
        ([teacher_folder, "--against", image_folder, "--compare", "demo:teacher"], "different sizes"),
        ([teacher_folder, "--against", image_folder, "--device", "toaster"], "'toaster' is not to be had"),
    ):
        done = CliRunner().invoke(app, ["analyze", *map(str, arguments), "-o", str(tmp_path / "a")])
        assert isinstance(done.exception, SlimdpmError) and words in str(done.exception)
        assert not (tmp_path / "a").exists()

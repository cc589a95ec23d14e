"""The ablation: runs side by side are the runs alone, pieces resume, and the tables count right."""

import copy
import json
import shutil
import time

import numpy as np
import pytest
import torch
from ablation import figures, grid, run, tables
from ablation.choices import Choices, stages
from ablation.grid import DENSE, Cell, Idea
from ablation.run import Ablation
from ablation.sizes import SIZES, Size
from ablation.together import OncePerBatch, train_together
from helpers import TINY, drawn
from PIL import Image
from safetensors.torch import load_file

from slimdpm.method.latency import latencies
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.recipe_file import load_recipe
from slimdpm.system.errors import SlimdpmError
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

pytestmark = pytest.mark.slow

QUICK = {
    "student.width": 8, "train.steps": 4, "train.batch_size": 4, "train.warmup": 2, "train.ema": 0.9,
    "train.checkpoint_every": 2, "train.log_every": 2, "train.trackers": [], "train.sample_every": 0,
    "data.workers": 0, "data.flip": True,
}  # fmt: skip


def job(teacher_folder, image_folder, **settings):
    named = {key.replace("__", "."): value for key, value in settings.items()}
    return plan_job(
        load_recipe(None, settings={**QUICK, "teacher": str(teacher_folder), "data.path": str(image_folder), **named})
    )


def weights(folder):
    return load_file(folder / "student" / "unet" / "diffusion_pytorch_model.safetensors")


def variants(teacher_folder, image_folder, **more):
    return {
        "features": job(teacher_folder, image_folder, distill__pairs="auto", **more),
        "outputs": job(teacher_folder, image_folder, distill__pairs="none", **more),
        "some": job(teacher_folder, image_folder, distill__pairs=["up_blocks.1"], distill__lambda_freq=0.0, **more),
        "plain": job(teacher_folder, image_folder, task="train", student__kind="lite", **more),
    }


@pytest.fixture(scope="module")
def together(tmp_path_factory, teacher_folder, image_folder):
    """The folder of all variants, trained side by side."""
    folder = tmp_path_factory.mktemp("together")
    jobs = variants(teacher_folder, image_folder)
    train_together(jobs, {name: folder / name for name in jobs})
    return folder


def test_runs_side_by_side_are_the_runs_alone_bit_for_bit(together, teacher_folder, image_folder, tmp_path):
    for name, alone in variants(teacher_folder, image_folder).items():
        run_job(alone, tmp_path / f"{name}-alone", report=False)
        ours, theirs = weights(together / name), weights(tmp_path / f"{name}-alone")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def test_a_run_that_is_behind_catches_up(together, teacher_folder, image_folder, tmp_path):
    """As after a kill between the checkpoints of two runs: one has half of its steps, the other none."""
    constant = {"train__schedule": "constant"}  # with it fewer steps are a part of more
    half = {"features": job(teacher_folder, image_folder, distill__pairs="auto", train__steps=2, **constant)}
    train_together(half, {"features": tmp_path / "late"})
    jobs = {k: v for k, v in variants(teacher_folder, image_folder, **constant).items() if k in ("features", "some")}
    train_together(jobs, {"features": tmp_path / "late", "some": tmp_path / "late-some"})
    for name, folder in (("features", "late"), ("some", "late-some")):
        ours, theirs = weights(tmp_path / folder), weights(together / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def test_the_teacher_runs_once_for_a_batch():
    calls = []

    class Counted(torch.nn.Module):
        def forward(self, x, t, **conditions):
            calls.append(1)
            return x * 2

    network = OncePerBatch(Counted())
    x, t = torch.randn(2, 3), torch.tensor([1, 2])
    first = network(x, t)
    assert torch.equal(network(x.clone(), t.clone()), first) and len(calls) == 1
    assert torch.equal(network(x + 1, t), (x + 1) * 2) and len(calls) == 2
    network(x + 1, t + 1)
    assert len(calls) == 3
    condition = {"added": {"text": torch.ones(2)}}
    for _ in range(2):
        network(x + 1, t + 1, **condition, return_dict=False)
    assert len(calls) == 4
    network(x + 1, t + 1, added={"text": torch.zeros(2)}, return_dict=False)
    assert len(calls) == 5
    network(x + 1, t + 1, added={"image": torch.zeros(2)}, return_dict=False)
    assert len(calls) == 6


def test_frozen_parameters_stay_and_the_others_move(teacher_folder, image_folder, tmp_path):
    start = job(teacher_folder, image_folder, student__kind="spectral", train__steps=1, train__lr=1e-12)
    frozen = {"student__kind": "spectral", "train__freeze": ["*.gate.*"]}
    moved = job(teacher_folder, image_folder, **frozen, train__lr=1e-2)
    for name, one in (("start", start), ("moved", moved)):
        run_job(one, tmp_path / name, report=False)
    before, after = weights(tmp_path / "start"), weights(tmp_path / "moved")
    gates = [key for key in before if ".gate." in key]
    assert gates
    for key in before:
        assert torch.allclose(before[key], after[key], atol=1e-6) == (key in gates), key
    with pytest.raises(SlimdpmError, match=r"train\.freeze: no parameter of the student matches 'nothing'"):
        run_job(job(teacher_folder, image_folder, train__freeze=["nothing"]), tmp_path / "none", report=False)


TINY_SIZE = Size(
    pixels=16,
    base="pixel-32",
    teacher={**{k: v for k, v in TINY.items() if k not in ("sample_size", "in_channels", "out_channels")}},
    teacher_settings={"train.steps": 2, "train.batch_size": 4, "data.workers": 0, "train.sample_every": 0,
                      "samples.count": 2, "samples.steps": 2},
    student_settings={"train.steps": 2, "train.batch_size": 4, "train.ema": 0.9, "data.workers": 0},
    widths={"spectral": ((8, 8), (16, 16)), "lite": ((8, 8), (16, 16))},
    images=12,
    sampler_steps=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The experiment with a teacher of seconds, three cells and features that need no network: its images."""
    from ablation import measure

    from slimdpm.metrics.extractors import Extractor

    cells = [
        Cell("lite", "core", "the baseline", "lite", distilled=False),
        Cell("spectral", "core", "gated and distilled"),
        Cell("alpha 0", "omega", "flat", settings={"distill.alpha": 0.0}),
    ]
    mean = Extractor("mean", "mean", lambda x: (x.mean(dim=(2, 3)), None), torch.device("cpu"))
    rng = np.random.default_rng(0)
    names = np.array([f"{part}/{i}.jpg" for part, n in (("train", 40), ("test", 24)) for i in range(n)])
    file = tmp_path_factory.mktemp("tiny") / "photos.npz"
    np.savez(file, images=rng.integers(0, 256, (64, 32, 32, 3), dtype=np.uint8), names=names)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measure, "load_extractor", lambda name: mean)
        patched.setitem(SIZES, "tiny", TINY_SIZE)
        patched.setattr(run, "cells_of", lambda size: cells)
        yield str(file)


@pytest.fixture(scope="module")
def ablation(tiny, tmp_path_factory):
    """The results of the whole experiment, and its folder."""
    folder = tmp_path_factory.mktemp("ablation") / "a"
    return Ablation("tiny", tiny, folder, seeds=(0, 1)).run(), folder


def test_the_whole_ablation_resumes_and_repeats_its_numbers(tiny, ablation):
    first, folder = ablation
    assert first["facts"]["images"] == {"train": 36, "tune": 4, "evaluation": 24}
    assert {name: sorted(cell["seeds"]) for name, cell in first["cells"].items()} == {
        "lite": ["0", "1"], "spectral": ["0", "1"], "alpha 0": ["0", "1"],
    }  # fmt: skip
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "students").rglob("*.safetensors")}
    one = folder / "results" / "alpha_0-1.json"
    known = json.loads(one.read_text())
    one.unlink()
    assert Ablation("tiny", tiny, folder, seeds=(0, 1)).run() == first
    assert json.loads(one.read_text()) == known
    unchanged = {p for p, stamp in stamps.items() if p.stat().st_mtime_ns == stamp}
    assert unchanged >= {p for p in stamps if "alpha_0-1" not in str(p)}


def test_each_choice_is_made_with_the_winners_of_the_ones_before():
    errors = {"tune/lite-plain-0.016": 0.5, "tune/spectral-plain-0.004": 0.5}
    errors |= {"tune/gating-dense": 0.4, "tune/gating-mixed": 0.6, "tune/losses-outputs-2": 0.9}
    asked = []

    def measures(cell):
        asked.append(cell.stage)
        return {f"overall error t={t}": errors.get(cell.name, 1.0) * scale for t, scale in ((50, 1.0), (500, 0.01))}

    choices = Choices(measures)
    rates, gatings, losses = stages()
    assert [choices.rate(cell) for cell in rates] == [0.004, 0.008, 0.016] * 2 and not asked
    assert choices.rate(gatings[0]) == 0.004 and choices.gating(gatings[0]) == {} and max(asked) == 0
    assert choices.gating(losses[0]) == DENSE and choices.losses(losses[0]) == {} and max(asked) == 1
    lite, plain, spectral = (Cell("", "", "", "lite"), Cell("", "", "", distilled=False), Cell("", "", ""))
    assert (choices.rate(lite), choices.rate(plain)) == (0.016, 0.004)
    assert choices.gating(lite) == {} and choices.gating(plain) == DENSE and choices.losses(plain) == {}
    assert choices.losses(spectral)["distill.lambda_freq"] == choices.losses(lite)["distill.lambda_spatial"] == 2.0
    errors["tune/losses-outputs-2"] = 1.1
    assert choices.losses(spectral)["distill.lambda_freq"] == 0.5


def test_a_kept_teacher_and_known_results_leave_only_what_is_missing(tiny, ablation, tmp_path):
    first, folder = copy.deepcopy(ablation[0]), ablation[1]
    kept = folder / "teacher-bf16"
    assert all(file.stat().st_size <= 1_900_000 for file in kept.rglob("*.safetensors"))
    assert str(folder) not in "".join(file.read_text() for file in kept.rglob("*.json"))
    whole = load_pipeline(folder / "teacher").unet.state_dict()
    for name, tensor in load_pipeline(kept).unet.state_dict().items():
        assert torch.equal(tensor, whole[name].bfloat16().float())
    del first["cells"]["spectral"]
    (tmp_path / "known.json").write_text(json.dumps(first))
    again = Ablation("tiny", tiny, tmp_path / "b", seeds=(0, 1), teacher=kept)
    again.take(tmp_path / "known.json")
    second = again.run()
    assert second["cells"]["lite"] == first["cells"]["lite"] and second["teacher"] == first["teacher"]
    made = {path.name for path in (tmp_path / "b" / "students").iterdir()}
    assert made == {"spectral-0", "spectral-1"} and not (tmp_path / "b" / "teacher").exists()
    first["teacher"]["fingerprint"] = "another"
    (tmp_path / "known.json").write_text(json.dumps(first))
    with pytest.raises(SlimdpmError, match="is of another teacher"):
        again.take(tmp_path / "known.json")


def test_an_idea_changes_its_own_student_alone(together, teacher_folder, image_folder, tmp_path):
    """The loss of one is doubled, and the network of the other: its neighbours are what they are alone."""

    def doubled(trainer):
        losses = trainer.distiller.losses
        trainer.distiller.losses = lambda *args, **kwargs: {k: 2 * v for k, v in losses(*args, **kwargs).items()}

    seen = []
    ideas = {"outputs": Idea(trainer=doubled), "some": Idea(network=seen.append)}
    jobs = variants(teacher_folder, image_folder)
    pipelines = train_together(jobs, {name: tmp_path / name for name in jobs}, ideas=ideas)
    for name in jobs:
        ours, bare = weights(tmp_path / name), weights(together / name)
        assert all(torch.equal(ours[key], bare[key]) for key in ours) == (name != "outputs"), name
    assert len(seen) == 2 and seen[0] is not seen[1] and seen[1] is pipelines["some"].unet


def test_images_without_an_evaluation_split_are_refused(tmp_path):
    np.save(tmp_path / "plain.npy", np.zeros((4, 32, 32, 3), np.uint8))
    with pytest.raises(SlimdpmError, match="must hold images below train/ and others"):
        Ablation("32", str(tmp_path / "plain.npy"), tmp_path / "a")


def results_of(lite, spectral):
    """Results with the same value of each measure in each seed's place."""
    keys = [f"{what} error t={t}" for what in ("overall", "upper-half") for t in (50, 500)]
    keys += ["kernel distance", "Fréchet distance", "log-spectral distance, dB", "upper-half error, dB"]

    def cell(about, values):
        seeds = {
            str(i): {"macs": 2e6, "macs_all": 3e6, "measures": dict.fromkeys(keys, v)} for i, v in enumerate(values)
        }
        return {"group": "core", "about": about, "kind": about, "seeds": seeds}

    return {
        "floor": {key: 0.1 for key in keys if "error t=" not in key},
        "teacher": {"macs": 9e6, "measures": dict.fromkeys(keys, 1.0)},
        "cells": {"lite": cell("lite", lite), "spectral": cell("spectral", spectral)},
    }


def test_ratios_are_of_the_same_seed_with_students_interval():
    from scipy import stats

    results = results_of([2.0, 4.0, 5.0], [1.0, 3.0, 3.0])
    summary = tables.summaries(results, "spectral")["kernel distance"]
    ratios = [0.5, 0.75, 0.6]
    assert summary.values == pytest.approx(ratios)
    expected = stats.t.interval(0.95, 2, loc=np.mean(ratios), scale=stats.sem(ratios))
    assert summary.interval == pytest.approx(expected)
    headings, rows = tables.rows(results)
    assert [row[0] for row in rows] == ["lite", "spectral", "teacher", "real against real"]
    assert rows[1][headings.index("kernel distance")] == f"{np.mean(ratios):.3f} ± {stats.sem(ratios):.3f}"
    assert rows[2][headings.index("upper half")] == f"{np.mean([1 / 2, 1 / 4, 1 / 5]):.3f}"


def test_an_effect_is_the_geometric_mean_over_what_else_a_student_has():
    """Each of the four pairs has another ratio; their geometric mean by hand, for each seed."""
    results = results_of([1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    cells = results["cells"]
    values = {"lite": 1.0, "spatial": 2.0, "frequency": 4.0, "spatial + frequency": 8.0}
    for place, (name, value) in enumerate(values.items()):
        gated = {"lite": "gating", "spatial + frequency": "spectral"}.get(name, f"gating + {name}")
        cells[name] = results_of([value] * 3, [1.0] * 3)["cells"]["lite"]
        with_gating = [value * (0.5 + 0.1 * place) * scale for scale in (1.0, 1.1, 1.2)]
        cells[gated] = results_of(with_gating, [1.0] * 3)["cells"]["lite"]
    headings, lines = tables.effects(results)
    gating = next(line for line in lines if line[0] == "gating")
    mean = (0.5 * 0.6 * 0.7 * 0.8) ** 0.25
    expected = tables.Summary((mean, 1.1 * mean, 1.2 * mean))
    low, high = expected.interval
    assert gating[headings.index("kernel distance")] == f"{expected.mean:.3f} ({low:.3f} to {high:.3f})"
    assert [line[0] for line in lines] == ["gating", "spatial distillation", "frequency distillation"]
    spatial = (2 * 2 * (2 * 0.6 / 0.5) * (8 * 0.8 / (4 * 0.7))) ** 0.25  # the same in each seed
    assert lines[1][headings.index("kernel distance")] == f"{spatial:.3f} ({spatial:.3f} to {spatial:.3f})"


def test_one_seed_has_no_interval_and_a_seed_without_lite_does_not_count():
    results = results_of([2.0], [1.0, 3.0])
    summary = tables.summaries(results, "spectral")["error of ε"]
    assert summary.values == (0.5,) and np.isnan(summary.interval).all()
    assert str(summary) == "0.500"


def test_headlines_set_long_training_beside_a_lite_trained_as_long():
    results = results_of([2.0, 4.0], [1.0, 1.0])
    cells = results["cells"]
    spectral, lite = grid.weighed(grid.LONG_SPECTRAL), grid.weighed(grid.LONG_LITE)
    cells |= {grid.LONG_LITE: cells["lite"], lite: cells["spectral"], spectral: cells["spectral"]}
    headings, lines = tables.headlines(results)
    found = {name: dict(zip(headings[1:], line, strict=True)) for name, *line in lines}
    assert [name for name in found if "long" in name and not name.endswith("÷ teacher")] == [
        f"{spectral} ÷ {grid.LONG_LITE}",
        f"{spectral} ÷ {lite}",
    ]
    ratio, reach = tables.Summary((0.5, 0.25)), tables.Summary((0.5, 0.25)).interval
    assert found[f"{spectral} ÷ {grid.LONG_LITE}"]["Fréchet"] == f"{ratio.mean:.3f} ({reach[0]:.3f} to {reach[1]:.3f})"
    assert found[f"{spectral} ÷ {lite}"]["Fréchet"] == "1.000 (1.000 to 1.000)"


def test_a_change_is_beside_the_student_that_it_changes_with_the_same_seed():
    results = results_of([1.0, 1.0], [2.0, 4.0])
    cells = results["cells"]
    cells[grid.CHANGED] = cells.pop("spectral")
    cells["alpha 0"] = {**results_of([3.0, 2.0], [1.0])["cells"]["lite"], "group": "omega", "about": "α = 0"}
    headings, (line,) = tables.changes(results)
    low, high = tables.Summary((1.5, 0.5)).interval
    assert line[:3] == ["α = 0", "2.0", "2"]
    assert line[headings.index("Fréchet")] == f"1.000 ({low:.3f} to {high:.3f})"
    held_out = headings.index("error of ε, held out")
    assert line[held_out] == "–"

    for name, errors in ((grid.CHANGED, (1.0, 10.0)), ("alpha 0", (0.5, 15.0))):
        for cell in cells[name]["seeds"].values():
            cell["measures"] |= {f"held-out overall error t={t}": e for t, e in zip((50, 700), errors, strict=True)}
    (line,) = tables.changes(results)[1]
    assert line[held_out] == "1.000 (1.000 to 1.000)"  # 0.5 and 1.5


def test_a_cell_that_repeats_another_is_not_run(tiny, ablation, tmp_path):
    """As λ = 2 does where the tuning chose it."""
    again = Cell("again", "core", "the baseline once more", "lite", distilled=False)
    changed = Cell("changed", "core", "with an idea", "lite", distilled=False, idea=Idea(trainer=lambda trainer: None))
    folder = shutil.copytree(ablation[1], tmp_path / "a")
    results = Ablation("tiny", tiny, folder, seeds=(0,), more=[again, changed]).run(["core"])
    assert list(results["cells"]) == ["lite", "spectral", "alpha 0", "changed"]


def test_the_pictures_are_drawn(tmp_path):
    results = results_of([2.0, 3.0], [1.0, 1.5])
    results["latency"] = {"lite": 0.004, "spectral": 0.005}
    cells = results["cells"]
    cells[grid.CHANGED], cells["alpha 0"] = cells["spectral"], {**cells["lite"], "group": "omega"}
    ways = {"cells": figures.cells_figure, "changes": figures.changes_figure, "pareto": figures.pareto_figure}
    for name, draw in ways.items():
        with drawn():
            draw(results, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 500 and len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_networks_are_timed_in_turns():
    turns = []

    class Timed(torch.nn.Module):
        def __init__(self, name, seconds):
            super().__init__()
            self.name, self.seconds, self.weight = name, seconds, torch.nn.Parameter(torch.zeros(1))
            self.config = {"sample_size": 4, "in_channels": 1}

        def forward(self, sample, timestep, return_dict):
            turns.append(self.name)
            time.sleep(self.seconds)
            return (sample,)

    found = latencies({"slow": Timed("slow", 0.03), "fast": Timed("fast", 0.0)}, rounds=3)
    assert turns == ["slow", "fast"] * 4
    assert found["slow"] > 0.03 and found["slow"] > found["fast"]

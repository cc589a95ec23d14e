"""Budgets in time: the choice against all there is to choose from, by a clock that is a formula; and what keeps it."""

import json
import os
import re
import sys
import time
from collections import defaultdict
from itertools import pairwise

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from helpers import TINY, TINY_CONDITION, TINY_RESNET, TRIAL, command, launch
from torch import nn
from typer.testing import CliRunner

from slimdpm import run_folder
from slimdpm.cli.main import app
from slimdpm.method import runtimes, timed_plan
from slimdpm.method.cost import WidthCounter, measure
from slimdpm.method.depth import depths, left_out
from slimdpm.method.inherit import inherited_weights
from slimdpm.method.networks import build, example_inputs, once_per_config
from slimdpm.method.runtimes import exported_call
from slimdpm.method.slimming import student_base
from slimdpm.method.timed_plan import Stopwatch, TimeBudget, plan_in_time, widths
from slimdpm.method.widths import proportional
from slimdpm.recipe_file import load_recipe
from slimdpm.run_folder import RunFolder
from slimdpm.system.errors import SlimdpmError
from slimdpm.training import timed_student
from slimdpm.unet import SpectralUNet2DModel

DEEP = {**TINY, "_class_name": "UNet2DModel", "block_out_channels": (16, 32), "norm_num_groups": 4}
DEEP |= {"layers_per_block": 2, "mid_block_type": "UNetMidBlock2D", "add_attention": True}
TINIEST = {**TINY, "_class_name": "UNet2DModel", "sample_size": 8, "block_out_channels": (8,), "norm_num_groups": 2}
TINIEST |= {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "mid_block_type": None}

XL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 2, "projection_class_embeddings_input_dim": 20}

counters = defaultdict(WidthCounter)  # by what is not width: hundreds of widths are looked at
WIDTH = ("block_out_channels", "norm_num_groups", "attention_head_dim")


@once_per_config
def macs(config):
    return counters[repr({key: value for key, value in config.items() if key not in WIDTH})].measure(config).macs


def seconds(config):
    """Of a machine that takes 0.1 ms for each layer with weights, about, and 1 ns for each MAC."""
    blocks = [*config["down_block_types"], *config["up_block_types"]]
    layers = config["layers_per_block"] * sum(5 + 5 * ("Attn" in block) for block in blocks)
    middle = 10 + 5 * config["add_attention"] if config["mid_block_type"] else 0
    return 1e-4 * (layers + middle) + 1e-9 * macs(config)


def watch(configs, teacher=DEEP):
    return seconds(teacher), [seconds(config) for config in configs]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["spectral", "plain"])
@pytest.mark.parametrize("budget", [TimeBudget(speedup=2), TimeBudget(speedup=6), TimeBudget(max_ms=5)])
def test_the_student_is_the_one_of_most_macs_among_all_that_are_fast_enough(kind, budget):
    """All depths at all widths; the search measures a few of them."""
    everything = [config for base in depths(student_base(DEEP, kind, {})) for config in widths(base)]
    limit = budget.limit(seconds(DEEP))
    best = max((c for c in everything if seconds(c) <= limit), key=macs)
    measured = []

    def noted(configs):
        measured.extend(configs)
        return watch(configs)

    found = plan_in_time(DEEP, budget, noted, kind=kind)
    assert measure(found.config).macs == measure(best).macs
    assert (found.teacher_seconds, found.student_seconds) == (seconds(DEEP), seconds(found.config))
    assert found.student_seconds <= limit
    assert len(measured) < len(everything)


@pytest.mark.parametrize("channels", [[32, 64, 96], [128, 256, 256, 256]])
def test_widths_lie_close_together_down_to_the_slimmest(channels):
    """By squares of the widths, each level at a quarter of the pixels: two fifths more from one to the next at most."""
    blocks = {"down_block_types": ["DownBlock2D"] * len(channels), "up_block_types": ["UpBlock2D"] * len(channels)}
    found = widths({**DEEP, **blocks, "block_out_channels": channels, "norm_num_groups": 8})
    sizes = [sum(n**2 / 4**level for level, n in enumerate(config["block_out_channels"])) for config in found]
    assert found[0]["block_out_channels"][0] == 8 and found[-1]["block_out_channels"][0] == channels[0]
    assert all(1 < wider / size < 1.4 for size, wider in pairwise(sizes))
    assert all(
        n <= wider
        for one, other in pairwise(found)
        for n, wider in zip(one["block_out_channels"], other["block_out_channels"], strict=True)
    )


def test_channels_come_in_fours_where_the_teachers_do():
    """But for single ones on a slim level, whose next four lie far off."""
    found = [config["block_out_channels"] for config in widths({**DEEP, "block_out_channels": [32, 64]})]
    others = [channels for channels in found if any(n % 4 for n in channels)]
    assert all(n % 4 == 0 or n < 16 for channels in found for n in channels) and len(others) < len(found) / 4
    strange = {**DEEP, "block_out_channels": [30, 64], "norm_num_groups": 2}
    found = [config["block_out_channels"] for config in widths(strange)]
    assert any(n > 16 and n % 4 for n, _ in found) and not any(n % 4 for _, n in found)


def test_a_wish_that_calls_make_impossible_names_the_fastest():
    everything = [config for base in depths(student_base(DEEP, "plain", {})) for config in widths(base)]
    least = min(map(seconds, everything))
    for budget in (TimeBudget(speedup=100), TimeBudget(max_ms=0.5)):
        with pytest.raises(SlimdpmError, match=f"takes {least * 1e3:.2f} ms a call, {seconds(DEEP) / least:.1f} times"):
            plan_in_time(DEEP, budget, watch)
    assert plan_in_time(DEEP, TimeBudget(max_ms=least * 1.0001e3), watch).student_seconds == least


def test_a_machine_that_turns_busy_is_believed_at_the_end():
    calls = 0

    def watch_that_tires(configs):
        nonlocal calls
        calls += 1
        theirs, ours = watch(configs)
        return theirs, [value * (1 if calls < 5 else 9) for value in ours]

    with pytest.raises(SlimdpmError) as raised:
        plan_in_time(DEEP, TimeBudget(speedup=2), watch_that_tires)
    assert float(re.search(r"([0-9.]+) times less", str(raised.value))[1]) < 2  # what was measured last


def test_what_the_user_fixes_of_the_depth_stays():
    found = plan_in_time(DEEP, TimeBudget(speedup=3), watch, overrides={"layers_per_block": 2, "add_attention": True})
    assert found.config["layers_per_block"] == 2 and found.config["add_attention"]


def test_in_the_layout_of_single_files_the_depth_stays_and_one_width_is_chosen():
    found = plan_in_time(DEEP, TimeBudget(speedup=3), watch, kind="plain", layout="sd")
    shapes = [config["block_out_channels"] for config in proportional(student_base(DEEP, "plain", {}))]
    assert found.config["block_out_channels"] in shapes and len(shapes) > 1
    assert found.config["layers_per_block"] == DEEP["layers_per_block"]
    assert found.student_seconds <= seconds(DEEP) / 3


def test_depths_by_hand():
    def told(config):
        found = depths({**config, "_class_name": "UNet2DModel"})
        keys = ("layers_per_block", "down_block_types", "up_block_types", "add_attention", "mid_block_type")
        return [[list(v) if isinstance(v := c.get(key), tuple) else v for key in keys] for c in found]

    whole = [["DownBlock2D", "AttnDownBlock2D"], ["AttnUpBlock2D", "UpBlock2D"], True, "UNetMidBlock2D"]
    plain = [["DownBlock2D", "DownBlock2D"], ["UpBlock2D", "UpBlock2D"]]
    trims = [whole, [*plain, True, "UNetMidBlock2D"], [*plain, False, "UNetMidBlock2D"], [*plain, False, None]]
    assert told(DEEP) == [[layers, *trim] for layers in (2, 1) for trim in trims]
    inner = depths({**TINY_RESNET, "_class_name": "UNet2DModel"})[-1]  # those resample inside of residual blocks
    assert inner["down_block_types"] == ["ResnetDownsampleBlock2D"] * 2
    assert inner["up_block_types"] == ["ResnetUpsampleBlock2D"] * 2
    condition = {**TINY_CONDITION, "down_block_types": ("CrossAttnDownBlock2D",) * 2, "layers_per_block": (1, 2)}
    condition |= {"up_block_types": ("CrossAttnUpBlock2D",) * 2, "_class_name": "UNet2DConditionModel"}
    *_, last = found = depths(condition)
    assert [c["layers_per_block"] for c in found] == [[1, 2]] * 3 + [[1, 1]] * 3
    assert last["down_block_types"] == ["DownBlock2D", "CrossAttnDownBlock2D"] and last["mid_block_type"] is None
    for config in (*found, inner):
        build(config)(**example_inputs(config, tokens=5))


def silenced(network, names):
    """A network in which these residual blocks, attentions and transformers add nothing to their shortcuts."""
    for name in names:
        module = network.get_submodule(name)
        last = getattr(module, "conv2", None) or getattr(module, "proj_out", None) or module.to_out[0]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return network


NO_MIDDLE = {"mid_block_type": None}
MIDDLE = ["mid_block.resnets.0", "mid_block.resnets.1", "mid_block.attentions.0"]


@pytest.mark.parametrize(
    ("network", "config", "layers", "fewer", "changes", "gone"),
    [
        (UNet2DModel, TINY, 2, 1, {}, {"down": ["resnets.1", "attentions.1"], "up": ["resnets.1", "attentions.0"]}),
        (UNet2DModel, TINY, 3, 2, {}, {"down": ["resnets.1", "attentions.1"], "up": ["resnets.2", "attentions.1"]}),
        (UNet2DModel, TINY, 3, 1, {}, {"down": ["resnets.1", "resnets.2", "attentions.1", "attentions.2"],
                                       "up": ["resnets.1", "resnets.2", "attentions.0", "attentions.1"]}),
        (UNet2DModel, TINY_RESNET, 2, 1, NO_MIDDLE, {"down": ["resnets.1", "attentions.1"],
                                                     "up": ["resnets.1", "attentions.0"]}),
        (UNet2DConditionModel, TINY_CONDITION, 2, 1, NO_MIDDLE, {"down": ["resnets.1", "attentions.1"],
                                                                 "up": ["resnets.1", "attentions.0"]}),
    ],
)  # fmt: skip
def test_a_shallower_student_is_its_teacher_whose_other_layers_do_nothing(
    network, config, layers, fewer, changes, gone
):
    """By hand: of 3 layers down the first and the last stay, of 4 up those that read what these wrote, and the last."""
    teacher = network(**{**config, "layers_per_block": layers})
    names = [f"{way}_blocks.{block}.{layer}" for way, all_of in gone.items() for block in (0, 1) for layer in all_of]
    names += MIDDLE if changes else []
    there = {name for name, _ in teacher.named_modules()}
    silenced(teacher, [name for name in names if name in there])
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = network(**{**config, "layers_per_block": fewer, **changes})
    weights = inherited_weights(teacher, student)
    assert weights.keys() == student.state_dict().keys()
    student.load_state_dict(weights)
    inputs = example_inputs(teacher.config, batch=2, tokens=5)
    ours, theirs = (unet.eval()(**inputs, return_dict=False)[0] for unet in (student, teacher))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_shallower_and_slimmer_gated_student_starts_with_all_but_its_gates():
    teacher = build(DEEP)
    shallow = {**DEEP, "layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 2, **NO_MIDDLE}
    shallow |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    config = student_base(shallow, "spectral", {"wavelet_expansion": "dense", "wavelet_down_mix": True})
    student = build(config)
    fresh = set(student.state_dict()) - set(inherited_weights(teacher, student))
    assert fresh and all(".gate." in name for name in fresh)
    assert [text.partition(" (")[0] for text in left_out(teacher.config, config)] == [
        "1 of 2 layers in a block", "no attention on level 2", "no middle block",
    ]  # fmt: skip
    assert left_out(teacher.config, DEEP) == []


def test_a_stopwatch_counts_by_its_clock():
    ticks = iter(range(10**6))
    stopwatch = Stopwatch(DEEP, torch.device("cpu"), clock=lambda: next(ticks) * 0.5)
    assert stopwatch([]) == (0.5, []) and stopwatch([DEEP, DEEP]) == (0.5, [0.5, 0.5])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_stopwatch_runs_the_graph_where_it_is_told(runtime, monkeypatch):
    called = []
    true = runtimes.exported_call

    def noted(network, *args, **options):
        call = true(network, *args, **options)
        return lambda: called.append((network.config["block_out_channels"], call()))

    monkeypatch.setattr(timed_plan, "exported_call", noted)
    stopwatch = Stopwatch(TINIEST, torch.device("cpu"), runtime=runtime)
    theirs, ours = stopwatch([{**TINIEST, "block_out_channels": (4,)}])
    assert theirs > 0 and len(ours) == 1 and ours[0] > 0
    assert {channels for channels, _ in called} == {(8,), (4,)}
    assert all(image.shape == (1, 3, 8, 8) for _, image in called)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "config"),
    [
        (UNet2DModel, {**TINY, "num_class_embeds": 3}),
        (UNet2DConditionModel, TINY_CONDITION),
        (UNet2DConditionModel, {**TINY_CONDITION, **XL}),
        (SpectralUNet2DModel, TINY),
    ],
)
def test_the_graph_that_is_timed_computes_the_network(network, config):
    network = network(**config)
    torch.manual_seed(0)
    inputs = example_inputs(network.config, batch=3, tokens=5)
    with torch.no_grad():
        expected = network.eval()(**inputs).sample
    torch.manual_seed(0)
    found = exported_call(network, "onnxruntime", batch=3, tokens=5)()
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=1e-4)


def test_a_runtime_is_there_and_has_a_budget(tmp_path, monkeypatch):
    def profiled(*words):
        with pytest.raises(SlimdpmError) as refused:
            CliRunner().invoke(app, ["profile", str(tmp_path), *words], catch_exceptions=False)
        return str(refused.value)

    with pytest.raises(SlimdpmError, match="runtime belongs to a budget in time"):
        load_recipe(values={"data": {"path": "x"}, "student": {"ratio": 8, "runtime": "onnxruntime"}})
    UNet2DModel(**TINY).save_config(tmp_path)
    assert "--runtime onyx: choose pytorch, onnxruntime, openvino" in profiled("--time", "--runtime", "onyx")
    assert "on the CPU" in profiled("--layers", "--runtime", "onnxruntime")
    assert "leave out --layers, --image" in profiled("--image", "5", "--runtime", "onnxruntime")
    with monkeypatch.context() as patched:
        patched.setattr(runtimes, "find_spec", {"onnx": True, "onnxscript": None}.get)
        assert "onnxscript is not installed" in profiled("--time", "--runtime", "onnxruntime")
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "OpenVINO is not installed: pip install 'slimdpm[openvino]'" in profiled("--time", "--runtime", "openvino")


@pytest.mark.slow
def test_profile_times_the_exported_graphs(tmp_path):
    UNet2DModel(**TINY).save_config(tmp_path)
    words = ("--time", "--batch", "1,2", "--rounds", "2", "--runtime", "onnxruntime")
    result = CliRunner().invoke(app, ["profile", str(tmp_path), *words, "--json"], catch_exceptions=False)
    (about,) = json.loads(result.stdout).values()
    assert all(about["seconds"][size]["low"] > 0 for size in ("1", "2"))
    shown = CliRunner().invoke(app, ["profile", str(tmp_path), *words], catch_exceptions=False).stdout
    assert re.search(r"measured on: CPU, .* ONNX Runtime \d", " ".join(shown.split()))


class Fake:
    """A stopwatch whose figures follow from the configs."""

    def __init__(self, teacher, device, *, tokens, runtime="pytorch"):
        self.teacher = teacher

    def __call__(self, configs):
        return watch(configs, self.teacher)


class Broken(Fake):
    def __call__(self, configs):
        raise AssertionError("measured again")


def slim(*words):
    return CliRunner().invoke(app, ["slim", *map(str, words)], catch_exceptions=False)


def options(*settings):
    return [part for setting in (*TRIAL, *settings) for part in ("--set", setting)]


@pytest.mark.slow
def test_profile_lists_the_students_of_a_speedup(tmp_path, monkeypatch):
    UNet2DModel(**TINY).save_config(tmp_path)
    monkeypatch.setattr(timed_plan, "Stopwatch", Fake)
    result = CliRunner().invoke(app, ["profile", str(tmp_path), "--speedup", "1.5,2", "--json"])
    teacher, *students = json.loads(result.stdout).items()
    assert [name for name, _ in students] == ["1.5 times faster", "2 times faster"]
    macs = [about["macs"] for _, about in (teacher, *students)]
    assert macs == sorted(macs, reverse=True) and len({*macs}) == 3


@pytest.mark.slow
def test_a_run_keeps_the_student_that_was_measured(teacher_folder, image_folder, tmp_path, monkeypatch, any_memory):
    monkeypatch.setattr(timed_student, "Stopwatch", Fake)
    run = tmp_path / "run"
    words = (teacher_folder, image_folder, "--speedup", 1.5, "--runtime", "onnxruntime", "-o", run)
    assert slim(*words, *options("train.steps=1")).exit_code == 0
    timed = RunFolder(run).recipe().student.timed
    assert timed.runtime.startswith("ONNX Runtime")
    assert timed.teacher_ms / timed.student_ms >= 1.5
    monkeypatch.setattr(timed_student, "Stopwatch", Broken)
    assert f"{timed.student_ms:.2f} ms a call" in slim(*words, *options("train.steps=2"), "--dry-run").stdout
    assert slim(*words, *options("train.steps=2")).exit_code == 0  # resumes
    assert RunFolder(run).recipe().student.timed == timed
    elsewhere = ("--recipe", run / "recipe.yaml", "-o", tmp_path / "elsewhere")
    assert slim(*elsewhere, "--set", "train.steps=1").exit_code == 0
    configs = [(folder / "student/unet/config.json").read_text() for folder in (run, tmp_path / "elsewhere")]
    assert configs[0] == configs[1]
    changed = CliRunner().invoke(
        app, ["slim", *map(str, words[:2]), "--speedup", "1.6", *words[4:6], "-o", str(run), *options()]
    )
    assert isinstance(changed.exception, SlimdpmError) and "student.speedup differs" in str(changed.exception)


@pytest.mark.slow
def test_of_two_processes_one_measures(teacher_folder, image_folder, tmp_path):
    def before():
        timed_student.Stopwatch = Fake
        true = timed_student._timed

        def noted(*args):
            print("measured", flush=True)
            return true(*args)

        timed_student._timed = noted
        check = RunFolder.check

        def late(folder, recipe):  # the second process looks at the folder when the first could have begun in it
            time.sleep(int(os.environ["RANK"]) / 2)
            check(folder, recipe)

        RunFolder.check = late
        run_folder.remove_leftovers = lambda *_, **__: time.sleep(0.2)

    words = (teacher_folder, image_folder, "-o", tmp_path / "run", *options("train.steps=1"))
    both = launch(command("slim", *words, "--speedup", "1.5", before=before))
    assert [done.code for done in both] == [0, 0], both
    assert sum("measured\n" in done.out for done in both) == 1
    both = launch(command("slim", *words[:2], "-o", tmp_path / "none", "--speedup", "99", before=before))
    assert [done.code for done in both] == [2, 2], both


def test_an_impossible_wish_is_one_line(teacher_folder, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(timed_student, "Stopwatch", Fake)
    with pytest.raises(SlimdpmError) as refused:
        slim(teacher_folder, image_folder, "--speedup", 99, "-o", tmp_path / "run", "--dry-run")
    assert "a speedup of 99 cannot be met on CPU" in str(refused.value) and "fastest student" in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("student", "complaint"),
    [
        ({"speedup": 8, "ratio": 12}, "give one budget, not ratio and speedup"),
        ({"speedup": 8, "overrides": {"block_out_channels": [8, 8]}}, "speedup chooses the widths"),
        ({"timed": {"config": {}, "machine": "", "runtime": "", "teacher_ms": 2, "student_ms": 1}}, "timed belongs to"),
        ({"speedup": 8, "timed": {"widths": 8}}, "student.timed.config is missing"),
        ({"speedup": 1}, "student.speedup"),
        ({"max_ms": 0}, "student.max_ms"),
    ],
)
def test_budgets_in_time_are_checked(student, complaint):
    with pytest.raises(SlimdpmError, match=complaint):
        load_recipe(values={"data": {"path": "x"}, "student": student})


def test_a_slip_in_what_was_measured_is_named():
    timed = {"config": {}, "machine": "", "runtime": "", "teacher_ms": 2, "student_ms": 1, "machines": 2}
    with pytest.raises(SlimdpmError, match="unknown key student.timed.machines; did you mean machine?"):
        load_recipe(values={"data": {"path": "x"}, "student": {"speedup": 2, "timed": timed}})

"""Costs against hand counts and the paper's table; budgets that are met, and those that cannot be."""

import json
import math

import pytest
import torch
from helpers import TINY, TINY_RESNET
from torch import nn
from typer.testing import CliRunner

from slimdpm.cli.main import app
from slimdpm.method.complexity import complexity_rows
from slimdpm.method.cost import WidthCounter, measure, measure_model
from slimdpm.method.inherit import MIXING
from slimdpm.method.networks import build, example_inputs, outline
from slimdpm.method.presets import PRESETS, find_network
from slimdpm.method.slimming import Budget, plan_student, student_base
from slimdpm.method.widths import proportional
from slimdpm.system.errors import SlimdpmError

TEACHER = {**TINY, "block_out_channels": (64, 128), "norm_num_groups": 16, "_class_name": "UNet2DModel"}


def cut(config):
    """The outer level of a network and its inner one: its widths have the same rules, and are found much sooner."""
    ends = {
        key: [config[key][0], config[key][-1]] for key in ("block_out_channels", "down_block_types", "up_block_types")
    }
    return {**config, **ends, "layers_per_block": 1}


# (parameters, conv+linear MACs) in the paper's tables; its MACs of conditional networks are not comparable
PAPER = {
    "ldm4": (274.1e6, 96.1e9),
    "ldm4-lite": (22.4e6, 7.9e9),
    "ldm4-spectral": (21.1e6, 6.7e9),
    "ldm8-church": (294.96e6, 18.7e9),
    "ldm4-imagenet": (400e6, None),
    "sd-v1": (860e6, None),
    "sd-v1-spectral": (77.6e6, None),
}


@pytest.mark.parametrize("name", PAPER)
def test_presets_cost_what_the_paper_says(name):
    cost = measure(PRESETS[name].config, tokens=PRESETS[name].tokens)
    params, macs = PAPER[name]
    assert cost.params == pytest.approx(params, rel=0.005)
    assert macs is None or cost.macs == pytest.approx(macs, rel=0.01)
    assert PRESETS[name].paper == PAPER[name]


@pytest.mark.slow
def test_the_papers_complexity_is_reproduced():
    rows = {row.preset.name: row for row in complexity_rows()}
    assert len(rows) == 12  # four tasks, three networks each
    for preset, row in rows.items():
        assert row.cost == measure(PRESETS[preset].config, tokens=PRESETS[preset].tokens)
    assert {name for name, row in rows.items() if row.preset.recalled} == {"ldm8-church", "sd-v1", "sd-v1-spectral"}
    text = CliRunner().invoke(app, ["reproduce", "complexity"]).stdout
    assert "294.96 M*" in text and "recalled" in text and "+0.34 %" in text
    found = json.loads(CliRunner().invoke(app, ["reproduce", "complexity", "--json"]).stdout)
    assert found[2]["preset"] == "ldm4-spectral" and found[2]["macs"] == rows["ldm4-spectral"].cost.macs


def test_the_student_of_the_paper_is_fourteen_times_cheaper():
    teacher, student = (measure(PRESETS[name].config) for name in ("ldm4", "ldm4-spectral"))
    assert teacher.macs / student.macs >= 14


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, "ldm4", "ldm8-church", "ldm4-imagenet", "sd-v1"])
def test_macs_equal_a_count_by_hand(name):
    """Every convolution, linear layer and attention product of a forward pass, counted from shapes by hooks."""
    config, tokens = (PRESETS[name].config, PRESETS[name].tokens) if name else (TEACHER, 77)
    with torch.device("meta" if name else "cpu"):
        model = build(config)
    counts = {"conv": 0, "linear": 0, "attention": 0}

    def conv(module, args, output):
        taps = module.kernel_size[0] * module.kernel_size[1] * module.in_channels // module.groups
        counts["conv"] += output.numel() * taps

    def linear(module, args, output):
        counts["linear"] += output.numel() * module.in_features

    def attention(module, args, kwargs, output):
        queries = output.shape[1] if output.dim() == 3 else output.shape[2] * output.shape[3]
        context = kwargs.get("encoder_hidden_states")
        keys = queries if context is None else context.shape[1]
        counts["attention"] += 2 * queries * keys * module.to_q.out_features

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(conv)
        elif isinstance(module, nn.Linear):
            module.register_forward_hook(linear)
        elif type(module).__name__ == "Attention":
            module.register_forward_hook(attention, with_kwargs=True)
    with torch.no_grad():
        model(**example_inputs(config, tokens=tokens, device="meta" if name else "cpu"))
    cost = measure(config, tokens=tokens)
    assert cost.macs == counts["conv"] + counts["linear"]
    assert cost.macs_all == cost.macs + counts["attention"]
    assert cost.params == sum(p.numel() for p in model.parameters())
    if name is None:  # whose weights are there
        assert measure_model(model, tokens=tokens) == cost


def test_an_outline_has_the_shapes_of_its_network_and_later_networks_have_first_weights():
    outlined = outline({**TEACHER, "_class_name": "SpectralUNet2DModel"}).state_dict()
    network = build({**TEACHER, "_class_name": "SpectralUNet2DModel"}).state_dict()
    assert {name: w.shape for name, w in outlined.items()} == {name: w.shape for name, w in network.items()}
    assert all(w.is_meta for w in outlined.values()) and network["conv_in.weight"].std() > 0.01


def test_gating_is_counted():
    config = {**TEACHER, "_class_name": "SpectralUNet2DModel"}
    plain, gated = measure(TEACHER), measure(config)
    # One stride-2 and one full-resolution 3x3 convolution go; a 1x1 in four groups, two FFNs and the fold come.
    c, down, up = 64, 8, 16
    c2 = 128
    gone = 9 * c * c * down**2 + 9 * c2 * c2 * up**2
    ffn = lambda n: n * (n // 4) + (n // 4) * 4 * n  # noqa: E731
    come = 4 * c2 * (c2 // 4) * down**2 + ffn(c) + ffn(c2) + 4 * c * down**2
    assert plain.macs - gated.macs == gone - come


@pytest.mark.parametrize("kind", ["spectral", "plain"])
@pytest.mark.parametrize("budget", [Budget(ratio=8), Budget(ratio=12), Budget(max_macs=2e7), Budget(max_params=3e5)])
def test_budgets_are_kept_and_used(kind, budget):
    plan = plan_student(TEACHER, budget, kind=kind)
    limit = {"ratio": plan.teacher_cost.macs / (budget.ratio or 1), "max_macs": budget.max_macs or 0}
    spent, most = (
        (plan.cost.params, budget.max_params)
        if budget.max_params
        else (plan.cost.macs, limit["ratio"] if budget.ratio else limit["max_macs"])
    )
    assert 0.85 * most <= spent <= most  # so small a network has few widths to choose from
    assert plan.cost == measure(plan.config)
    assert plan.config["_class_name"] == ("SpectralUNet2DModel" if kind == "spectral" else "UNet2DModel")
    build(plan.config)(torch.randn(2, 3, 16, 16), 3)


@pytest.mark.slow
def test_lite_and_spectral_of_one_ratio_cost_the_same_within_three_percent():
    plans = [plan_student(PRESETS["pixel-32"].config, Budget(ratio=8), kind=k) for k in ("lite", "spectral")]
    assert plans[0].cost.macs == pytest.approx(plans[1].cost.macs, rel=0.03)
    assert all(plan.ratio >= 8 for plan in plans)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "budget"),
    [(name, Budget(width=64)) for name in ("ldm4", "ldm8-church", "ldm4-imagenet", "sd-v1")]
    + [("ldm4", Budget(ratio=14)), ("sd-v1", Budget(ratio=12))],
)
def test_widths_honour_groups_and_heads(name, budget):
    preset = PRESETS[name]
    teacher = {**preset.config, "layers_per_block": 1} if budget.width else cut(preset.config)
    config = plan_student(teacher, budget, kind="spectral", tokens=preset.tokens).config
    groups, heads = config["norm_num_groups"], config["attention_head_dim"]
    assert all(c % groups == 0 and c // groups >= 2 for c in config["block_out_channels"])
    levels = zip(config["block_out_channels"], config["down_block_types"], strict=True)
    assert all(c % heads == 0 for c, block in levels if "Attn" in block)


def test_the_papers_width_gives_the_papers_student():
    plan = plan_student(PRESETS["ldm4"].config, Budget(width=64), kind="spectral")
    assert plan.config["block_out_channels"] == [64, 128, 192, 256]
    assert plan.cost == measure(PRESETS["ldm4-spectral"].config)
    assert plan.ratio == pytest.approx(14.36, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "least"), [(8, 16), (18, 8)])
def test_no_level_is_thinner_than_the_budget_forces(ratio, least):
    plan = plan_student({**PRESETS["pixel-64"].config, "layers_per_block": 1}, Budget(ratio=ratio))
    assert min(plan.config["block_out_channels"]) >= least and plan.ratio >= ratio


@pytest.mark.slow
def test_heads_of_one_size_stay_that_size():
    config = {
        **PRESETS["sd-v1"].config,
        "layers_per_block": 1,
        "block_out_channels": [320, 640, 1280, 1280],
        "attention_head_dim": [5, 10, 20, 20],
    }
    student = plan_student(config, Budget(width=128)).config
    assert student["attention_head_dim"] == [2, 4, 8, 8]


@pytest.mark.slow
def test_the_layout_of_stable_diffusion_is_one_width_with_its_groups_and_heads():
    config = PRESETS["sd-v1"].config
    found = [rung["block_out_channels"] for rung in proportional(student_base(config, "plain", {}))]
    assert found == [[n, 2 * n, 4 * n, 4 * n] for n in range(32, 321, 32)]
    plan = plan_student(config, Budget(ratio=12), kind="plain", layout="sd")
    assert plan.config["block_out_channels"] == [64, 128, 256, 256] and plan.ratio >= 12
    assert plan.config["norm_num_groups"] == 32 and plan.config["attention_head_dim"] == 8
    ratios = [plan_student(config, Budget(width=width), kind="plain", layout="sd").ratio for width in (128, 96, 64)]
    assert ratios == pytest.approx([6.2, 11.0, 24.5], abs=0.05)  # as docs/compatibility.md says
    with pytest.raises(SlimdpmError, match="in its layout; try 64 or 96"):
        plan_student(config, Budget(width=72), kind="plain", layout="sd")
    with pytest.raises(SlimdpmError, match="the slimmest student of this teacher has 96.0 times fewer"):
        plan_student(config, Budget(ratio=500), kind="plain", layout="sd")


@pytest.mark.slow
def test_overrides_come_before_the_budget():
    overrides = {"layers_per_block": 2, "wavelet_expansion": "dense"}
    plan = plan_student(TEACHER, Budget(ratio=6), kind="spectral", overrides=overrides)
    assert plan.config["layers_per_block"] == 2 and plan.config["wavelet_expansion"] == "dense" and plan.ratio >= 6
    fixed = plan_student(TEACHER, Budget(), overrides={"block_out_channels": [24, 48], "norm_num_groups": 8})
    assert fixed.config["block_out_channels"] == [24, 48]


def test_resampling_inside_residual_blocks_can_be_slimmed():
    teacher = {**TINY_RESNET, "block_out_channels": (64, 128), "_class_name": "UNet2DModel"}
    plan = plan_student(teacher, Budget(ratio=8), kind="spectral")
    assert plan.ratio >= 8
    build(plan.config)(torch.randn(2, 3, 16, 16), 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(ratio=900), "a ratio of 900 cannot be met: the slimmest student of this teacher has"),
        (Budget(max_macs=1), "1 MACs cannot be met"),
        (Budget(max_params=10), "10 parameters cannot be met"),
        (Budget(width=50), "a width of 50 does not fit"),
    ],
)
def test_what_cannot_be_met_names_the_nearest(budget, words):
    with pytest.raises(SlimdpmError, match=words) as error:
        plan_student(TEACHER, budget)
    if budget.ratio:  # and the nearest can indeed be met
        nearest = float(str(error.value).split("has ")[1].split(" times")[0])
        assert plan_student(TEACHER, Budget(ratio=math.floor(nearest * 10) / 10 - 0.1)).ratio >= nearest - 0.2


def test_only_unets_are_slimmed():
    with pytest.raises(SlimdpmError, match="not a network that slimdpm knows"):
        plan_student({"_class_name": "DiTTransformer2DModel", "sample_size": 8}, Budget(ratio=2))


def test_networks_are_found_by_preset_file_and_folder(tmp_path):
    build(TEACHER).save_pretrained(tmp_path / "unet")
    for place in (tmp_path, tmp_path / "unet", tmp_path / "unet" / "config.json"):
        assert measure(find_network(str(place)).config) == measure(TEACHER)
    (tmp_path / "net.json").write_text('{"_class_name": "UNet2DModel", "block_out_channels": [32, 32, 32, 32]}')
    config = find_network(str(tmp_path / "net.json")).config  # what it leaves out is what diffusers takes
    assert config["in_channels"] == 3
    assert find_network("ldm4") is PRESETS["ldm4"]
    with pytest.raises(SlimdpmError, match="no preset and no folder"):
        find_network("ldm5")
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(SlimdpmError, match="no config.json"):
        find_network(str(tmp_path / "text.json"))


# Of networks that resample within residual blocks, or have cross-attention, the options that they share are left out.
COUNTED = [("pixel-32", {}), ("pixel-32", MIXING), ("pixel-32", {"kind": "lite"})]
COUNTED += [("ldm8-church", MIXING), ("ldm8-church", {"kind": "lite"}), ("ldm4-imagenet", {})]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), COUNTED)
def test_other_widths_are_computed_as_they_are_counted(name, options):
    preset = PRESETS[name]
    overrides = {key: value for key, value in options.items() if key != "kind"}
    teacher = preset.config if name == "pixel-32" else cut(preset.config)
    base = student_base(teacher, options.get("kind", "spectral"), overrides)
    counter = WidthCounter(size=32, tokens=preset.tokens)
    levels = len(base["block_out_channels"])
    for widths in ([32] * levels, [32 * (i + 1) for i in range(levels)], [96] + [64] * (levels - 1)):
        config = {**base, "block_out_channels": widths, "norm_num_groups": 8, "attention_head_dim": 4}
        assert counter.measure(config) == measure(config, size=32, tokens=preset.tokens)

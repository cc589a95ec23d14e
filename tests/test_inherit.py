"""A start from the teacher's weights: exact where it can be, and the same whoever computes it.

The reference is a teacher that is a small network in disguise: half of its channels are dead, by masks that the tests
write down by hand, so the student of half the width that inherits from it must compute what it computes.
"""

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention import BasicTransformerBlock
from helpers import TINY, TINY_CONDITION, TINY_RESNET
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from slimdpm import SpectralUNet2DConditionModel, SpectralUNet2DModel
from slimdpm.cli.main import app
from slimdpm.method.inherit import inheritable, inherited_weights
from slimdpm.method.networks import build, example_inputs
from slimdpm.method.slimming import Budget, plan_student
from slimdpm.recipe_file import load_recipe
from slimdpm.system.errors import SlimdpmError
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

CASES = {
    "plain": (UNet2DModel, {**TINY, "num_class_embeds": 3}),
    "resnet": (UNet2DModel, TINY_RESNET),
    "condition": (UNet2DConditionModel, TINY_CONDITION),
    "learned time": (UNet2DModel, {**TINY, "time_embedding_type": "learned", "num_train_timesteps": 50}),
    "spectral": (SpectralUNet2DModel, TINY),
    "spectral resnet": (SpectralUNet2DModel, TINY_RESNET),
    "spectral condition": (SpectralUNet2DConditionModel, TINY_CONDITION),
}
GATED = {UNet2DModel: SpectralUNet2DModel, UNet2DConditionModel: SpectralUNet2DConditionModel}


def inherit(teacher, student):
    """The names of the weights that stay as they were."""
    weights = inherited_weights(teacher, student)
    assert not student.load_state_dict(weights, strict=False).unexpected_keys
    return set(student.state_dict()) - set(weights)


def outputs(*networks):
    inputs = example_inputs(networks[0].config, batch=2, tokens=5)
    inputs["timestep"] = torch.tensor([7, 31])
    return [network.eval()(**inputs, return_dict=False)[0] for network in networks]


@pytest.mark.parametrize("case", CASES)
def test_a_student_of_the_teachers_config_is_the_teacher(case):
    network, config = CASES[case]
    teacher, student = network(**config), network(**config)
    assert inherit(teacher, student) == set()
    one, other = outputs(teacher, student)
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", ["plain", "resnet", "condition"])
def test_a_plain_student_of_full_width_is_the_teacher_bit_for_bit(case):
    """As it is planned: with the teacher's groups, heads, time embedding and its own resampling."""
    network, config = CASES[case]
    config = {**config, "block_out_channels": (8, 16)}  # two channels in a group, fewer than are planned
    teacher = network(**config, **({"time_embedding_dim": 24} if case == "condition" else {}))
    plan = plan_student({**teacher.config, "_class_name": network.__name__}, Budget(width=8), kind="plain")
    student = build(plan.config)
    assert type(student) is network and inherit(teacher, student) == set()
    one, other = outputs(teacher, student)
    assert torch.equal(one, other)


@pytest.mark.parametrize("width", [(16, 32), (8, 16)])
@pytest.mark.parametrize("case", ["plain", "resnet", "condition"])
def test_only_gated_resamplers_are_fresh(case, width):
    network, config = CASES[case]
    teacher = network(**config)
    assert inherit(teacher, network(**{**config, "block_out_channels": width})) == set()
    student = GATED[network](**{**config, "block_out_channels": width})
    fresh = inherit(teacher, student)
    assert fresh and fresh == {name for name in student.state_dict() if ".gate." in name or ".expand." in name}


def half(width, first):
    return torch.arange(width) < width // 2 if first else torch.arange(width) >= width // 2


# The teacher's channels that live, by the size of a dimension. Level 0 has 16, level 1 has 48; those of the up blocks'
# inputs are hidden channels, then a skip's. Each is a whole number of norm groups in teacher and student alike.
ALIVE = {16: half(16, first=False), 48: half(48, first=True), 80: torch.arange(80) % 2 == 0}
ALIVE[192] = torch.arange(192) % 2 == 1  # inside a transformer's feed-forward layer
for parts in ((16, 16), (48, 16), (48, 48), (192, 192)):
    ALIVE[sum(parts)] = torch.cat([ALIVE[part] for part in parts])
# All of the first and last heads, or half of each head.
HEADS = {"heads": (torch.arange(48) // 8) % 2 == 0, "sizes": torch.arange(48) % 2 == 1}


def disguised(network, config, inner):
    """A teacher whose channels are dead outside of `ALIVE`, and within attention outside of `inner`."""
    teacher = network(**config)
    weights = teacher.state_dict()
    for name, weight in weights.items():
        if weight.ndim == 1:
            weight.add_(torch.randn(weight.shape) / 4)  # biases and norms that tell channels apart
        for dim in range(min(weight.ndim, 2)):
            alive = ALIVE.get(weight.shape[dim])
            into_heads = dim == 0 and any(f".{layer}." in name for layer in ("to_q", "to_k", "to_v"))
            out_of_heads = dim == 1 and ".to_out." in name
            if weight.shape[dim] == 48 and (into_heads or out_of_heads):
                alive = inner
            if alive is None or ".norm" in name or "conv_norm_out" in name:
                continue
            if name == "time_embedding.linear_1.weight" and dim == 1:
                alive = torch.arange(16) % 2 == 0  # every other frequency: those of half as many
            weight[(slice(None),) * dim + (~alive,)] = 0
    teacher.load_state_dict(weights)
    return teacher


def without_layer_norms(network):
    """A norm over all channels sees how many there are; no choice of channels can keep it."""
    for block in network.modules():
        if isinstance(block, BasicTransformerBlock):
            block.norm1 = block.norm2 = block.norm3 = nn.Identity()
    return network


WIDE = {"block_out_channels": (16, 48), "norm_num_groups": 8, "time_embedding_dim": 80}
SLIM = {"block_out_channels": (8, 24), "norm_num_groups": 4, "time_embedding_dim": 40}


@pytest.mark.parametrize(
    ("network", "config", "wide", "slim", "inner"),
    [
        (UNet2DModel, {**TINY, "num_class_embeds": 3}, {}, {}, "heads"),
        (UNet2DModel, TINY, {"attention_head_dim": 24}, {"attention_head_dim": 12}, "sizes"),
        (UNet2DModel, TINY_RESNET, {}, {}, "heads"),
        (UNet2DConditionModel, TINY_CONDITION, {"attention_head_dim": (2, 6)}, {"attention_head_dim": (2, 3)}, "heads"),
        (UNet2DConditionModel, TINY_CONDITION, {}, {}, "sizes"),
    ],
)
def test_dead_channels_are_left_behind(network, config, wide, slim, inner):
    if network is UNet2DConditionModel:  # attention in the deep level, where the heads are
        config = {**config, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
        config["up_block_types"] = ("CrossAttnUpBlock2D", "UpBlock2D")
    if config is TINY_RESNET:
        wide, slim = ({**sizes, "attn_norm_num_groups": n} for sizes, n in ((wide, 8), (slim, 4)))
    teacher = without_layer_norms(disguised(network, {**config, **WIDE, **wide}, HEADS[inner]))
    student = without_layer_norms(network(**{**config, **SLIM, **slim}))
    before, _ = outputs(student, teacher)
    assert inherit(teacher, student) == set()
    ours, theirs = outputs(student, teacher)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (before - theirs).abs().max() > 1e-2


def test_the_most_important_heads_are_kept_whole_and_in_order():
    config = {**TINY, "block_out_channels": (16, 32), "attention_head_dim": 8}
    teacher, student = UNet2DModel(**config), UNet2DModel(**{**config, "block_out_channels": (8, 16)})
    name = "mid_block.attentions.0.to_v"
    value = teacher.get_submodule(name)
    with torch.no_grad():
        value.bias.copy_(torch.arange(32.0))
        for head, scale in enumerate((1, 5, 1, 9)):
            value.weight[8 * head : 8 * head + 8] *= scale
    kept = inherited_weights(teacher, student)[f"{name}.bias"]
    assert kept.tolist() == [*range(8, 16), *range(24, 32)]


def test_what_is_dropped_leaves_the_size_of_a_weights_rows():
    teacher, student = UNet2DModel(**TINY), UNet2DModel(**{**TINY, "block_out_channels": (8, 16)})
    weights = inherited_weights(teacher, student)
    ours, theirs = (weight.flatten(1).norm(dim=1) for weight in (weights["conv_out.weight"], teacher.conv_out.weight))
    torch.testing.assert_close(ours, theirs.detach())


def test_a_shortcut_that_only_the_student_has_is_the_teachers_identity():
    teacher = UNet2DModel(**{**TINY, "block_out_channels": (16, 16)})
    student = UNet2DModel(**{**TINY, "block_out_channels": (16, 8)})
    weights = inherited_weights(teacher, student)
    shortcut = weights["down_blocks.1.resnets.0.conv_shortcut.weight"][..., 0, 0]  # (8, 16)
    assert torch.equal(shortcut.sum(1), torch.ones(8)) and set(shortcut.flatten().tolist()) == {0.0, 1.0}
    assert shortcut.argmax(1).tolist() == sorted(set(shortcut.argmax(1).tolist()))
    assert not weights["down_blocks.1.resnets.0.conv_shortcut.bias"].any()


def test_layers_without_a_counterpart_stay_fresh():
    teacher = UNet2DModel(**TINY)
    fresh = inherit(teacher, UNet2DModel(**{**TINY, "layers_per_block": 2, "block_out_channels": (8, 16)}))
    added = ("down_blocks.0.resnets.1.", "down_blocks.1.resnets.1.", "down_blocks.1.attentions.1.")
    assert all(name.startswith(added) for name in fresh if name.startswith("down_blocks"))
    assert not any(name.startswith(("conv_in", "time", "mid")) for name in fresh)
    wider = inherit(teacher, UNet2DModel(**{**TINY, "block_out_channels": (16, 64)}))
    assert "conv_in.weight" not in wider and "mid_block.resnets.0.conv1.weight" in wider


def test_blocks_of_other_kinds_are_refused():
    skip = {"down_block_types": ("DownBlock2D", "SkipDownBlock2D"), "up_block_types": ("SkipUpBlock2D", "UpBlock2D")}
    network = UNet2DModel(**{**TINY, **skip})
    with pytest.raises(SlimdpmError, match=r"student\.init: a .* cannot be inherited; set student\.init to random"):
        inherited_weights(network, network)
    assert not inheritable(network) and inheritable(UNet2DModel(**TINY))


SETTINGS = {
    "student.width": 8, "student.init": "teacher", "train.steps": 4, "train.batch_size": 4, "train.lr": 1e-12,
    "train.warmup": 0, "train.sample_every": 0, "train.trackers": [], "data.workers": 0, "samples.count": 2,
    "samples.steps": 2,
}  # fmt: skip


def run(folder, data, **settings):
    recipe = load_recipe(None, values={"data": {"path": str(data)}}, settings={**SETTINGS, **settings})
    run_job(plan_job(recipe), folder, report=False)
    return load_file(folder / "student/unet/diffusion_pytorch_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["slim", "train"])
def test_a_run_starts_there_and_resumes_elsewhere(task, tmp_path, teacher_folder, image_folder):
    teacher = UNet2DModel.from_pretrained(teacher_folder / "unet")
    student = UNet2DModel.from_config(teacher.config, block_out_channels=(8, 16), norm_num_groups=2)
    settings = {"task": task, "teacher": str(teacher_folder), "student.kind": "plain"}
    # At a learning rate that moves nothing.
    started = run(tmp_path / "still", image_folder, **settings, **{"train.steps": 1})
    expected = inherited_weights(teacher, student)
    assert started.keys() == expected.keys()
    assert all(torch.allclose(started[name], expected[name], atol=1e-6) for name in expected)

    settings["train.lr"] = 1e-2
    straight = run(tmp_path / "straight", image_folder, **settings)
    run(tmp_path / "stopped", image_folder, **{**settings, "train.steps": 2})
    resumed = run(tmp_path / "stopped", image_folder, **settings)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert any(not torch.allclose(straight[name], expected[name], atol=1e-3) for name in straight)
    with pytest.raises(SlimdpmError, match=r"student\.init differs"):
        run(tmp_path / "stopped", image_folder, **{**settings, "student.init": "random"})
    file = tmp_path / "stopped/recipe.yaml"
    named = {"slim": "kind: plain", "train": "kind: lite"}[task]
    assert named in file.read_text()
    file.write_text(file.read_text().replace(named, "kind: lite"))  # as an earlier version called both
    run(tmp_path / "stopped", image_folder, **{**settings, "student.kind": "lite"})


@pytest.mark.slow
def test_the_command_line_says_it(teacher_folder, image_folder, any_memory):
    command = ["slim", str(teacher_folder), str(image_folder), "--width", "8", "--dry-run"]
    for more, wanted in (([], True), (["--init", "teacher"], True), (["--init", "random"], False)):
        said = CliRunner().invoke(app, [*command, *more], catch_exceptions=False).output
        assert ("first weights  the teacher's most important channels" in said) is wanted


def test_the_default_is_the_teachers_where_there_is_one_to_inherit(teacher_folder, image_folder):
    def resolved(**settings):
        values = {"data": {"path": str(image_folder)}, "teacher": str(teacher_folder), "student": {"width": 8}}
        return plan_job(load_recipe(None, values=values, settings=settings)).recipe.student.init

    assert resolved() == "teacher"
    assert resolved(task="train") == "random"
    assert resolved(**{"student.init": "random"}) == "random"


def test_without_a_teacher_there_is_nothing_to_inherit(image_folder):
    recipe = load_recipe(
        None,
        values={"task": "train", "data": {"path": str(image_folder)}},
        settings={"student.base": "pixel-32", "student.init": "teacher"},
    )
    with pytest.raises(SlimdpmError, match=r"student\.init is teacher, but this run has none"):
        plan_job(recipe)


def test_gated_resamplers_that_mix_do_what_the_teachers_do_to_flat_features():
    """Away from the edges, where a convolution sees zeros."""
    teacher = UNet2DModel(**TINY)
    student = SpectralUNet2DModel(**TINY, wavelet_expansion="dense", wavelet_down_mix=True)
    fresh = inherit(teacher, student)
    assert fresh and all(".gate." in name for name in fresh)
    flat = torch.randn(2, TINY["block_out_channels"][0], 1, 1).expand(-1, -1, 8, 8)
    for names in ("down_blocks.0.downsamplers.0", "up_blocks.0.upsamplers.0"):
        theirs, ours = teacher.get_submodule(names), student.get_submodule(names)
        x = flat if flat.shape[1] == theirs.channels else flat.repeat(1, theirs.channels // flat.shape[1], 1, 1)
        inner = (..., slice(1, -1), slice(1, -1))
        torch.testing.assert_close(ours(x)[inner], theirs(x)[inner])

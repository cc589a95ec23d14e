"""A student fits what surrounds it: its own config cannot change what the pipeline gives and takes."""

import json

import pytest
from helpers import TINY, TRIAL

from slimdpm.recipe_file import load_recipe
from slimdpm.system.errors import SlimdpmError
from slimdpm.training.plan import plan_job


@pytest.mark.parametrize("gone", ["_class_name", "in_channels"])
def test_the_config_of_a_network_to_train_says_which(gone, tmp_path, image_folder):
    config = {"_class_name": "UNet2DModel", **TINY}
    (tmp_path / "net.json").write_text(json.dumps({k: v for k, v in config.items() if k != gone}))
    settings = [*TRIAL, "task=train", f"student.base={tmp_path / 'net.json'}", f"data.path={image_folder}"]
    if gone == "in_channels":  # diffusers' default
        assert plan_job(load_recipe(None, settings)).plan.config["in_channels"] == 3
        return
    with pytest.raises(SlimdpmError, match="None is not a network that slimdpm knows"):
        plan_job(load_recipe(None, settings))


def test_kind_and_layout_of_a_student(teacher_folder, image_folder):
    """What a network without gates is called follows from what it learns from; single files have no room for gates."""

    def planned(**settings):
        values = {"teacher": str(teacher_folder), "data": {"path": str(image_folder)}, "student": {"width": 8}}
        return plan_job(load_recipe(None, TRIAL, values=values, settings=settings), weights=False)

    kinds = {
        "plain": ("slim", "UNet2DModel"),
        "lite": ("train", "UNet2DModel"),
        "spectral": ("slim", "SpectralUNet2DModel"),
    }
    for kind, (task, network) in kinds.items():
        for given in {kind, *(("plain", "lite") if kind != "spectral" else ())}:
            job = planned(task=task, **{"student.kind": given})
            assert (job.recipe.student.kind, job.plan.config["_class_name"]) == (kind, network)
            assert ("wavelet_down_mix" in job.recipe.student.overrides) is (kind == "spectral")
            assert bool(job.card()["first"]) is (kind == "spectral")
    with pytest.raises(SlimdpmError, match=r"have no room for wavelet gates: add --plain"):
        planned(**{"student.layout": "sd", "student.kind": "spectral"})
    kept = planned(**{"student.layout": "sd"}).plan.config
    assert kept["block_out_channels"] == [8, 16] and kept["norm_num_groups"] == TINY["norm_num_groups"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{num_class_embeds: 4}", "the student would have another class_labels"),
        ("{in_channels: 4}", "the student would have another sample"),
        ("{out_channels: 6}", "the student would have another output .6, the pipeline has 3"),
    ],
)
def test_a_student_takes_and_gives_what_its_teacher_does(settings, message, teacher_folder, image_folder):
    values = {"teacher": str(teacher_folder), "data": {"path": str(image_folder)}}
    recipe = load_recipe(None, [*TRIAL, "student.width=8", f"student.overrides={settings}"], values=values)
    with pytest.raises(SlimdpmError, match=message):
        plan_job(recipe)

"""Exported pipelines that make images of an image: their folder and runner, beside `sample_images`.

The networks are PyTorch's in place of their graphs, which take seconds each to export and are compared elsewhere.
"""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from test_image_conditions import editing, inpainting

from slimdpm import Request, SlimdpmError, sample_images
from slimdpm.export import folder as export_folder
from slimdpm.export import runner
from slimdpm.export.folder import Samplers, export_pipeline
from slimdpm.export.runner import command
from slimdpm.export.web.site import _copied
from slimdpm.pipelines.loading import load_pipeline

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torchlib")]


@pytest.fixture(params=[inpainting, editing])
def exported(request, tmp_path, monkeypatch):
    """The pipeline's folder, the exported one, photographs, and a mask if there is one."""
    graphs = {}

    def write(graph, file, **_):
        file.write_bytes(b"graph")
        graphs[graph.name] = graph

    def networks(folder, manifest, threads):
        def opened(place, *outputs):
            graph = graphs[manifest[place].partition("/")[0]]

            def call(**inputs):
                assert inputs.keys() == graph.inputs.keys()
                assert all(inputs[name].shape[1:] == graph.inputs[name].shape[1:] for name in inputs)
                with torch.inference_mode():
                    made = graph.module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
                parts = [part.numpy() for part in (made if isinstance(made, tuple) else (made,))]
                return [parts[graph.outputs.index(name)] for name in outputs] if outputs else parts[0]

            return call

        return opened

    monkeypatch.setattr(export_folder, "to_onnx", write)
    monkeypatch.setattr(export_folder, "check_graph", lambda *_: 0.0)
    monkeypatch.setattr(command, "networks", networks)
    torch.manual_seed(0)
    saved, made = tmp_path / "saved", tmp_path / "onnx"
    request.param(tmp_path, DDPMScheduler(clip_sample=False, steps_offset=1)).save_pretrained(saved)
    export_pipeline(str(saved), made, samplers=Samplers(("dpm++",), (3,)))
    photographs = []
    for i, size in enumerate([(40, 24, 3), (9, 30, 4)]):  # tall, and wide with transparency
        photographs.append(tmp_path / f"{i}.png")
        Image.fromarray(np.random.default_rng(i).integers(0, 256, size, np.uint8)).save(photographs[-1])
    masks = [tmp_path / "mask.png"] if request.param is inpainting else []
    for file in masks:
        Image.fromarray(np.pad(np.full((9, 7), 255, np.uint8), ((3, 4), (2, 7)))).save(file)
    return saved, made, photographs, masks


def words(photographs, masks):
    shown = [("--image", file) for file in photographs] + [("--mask", file) for file in masks]
    return ["--prompt", "a coat", *(str(word) for pair in shown for word in pair)]


def made_by(folder, output, *words):
    assert runner.main(["-n", "3", "--seed", "5", "-o", str(output), *words], folder) == 0
    return np.stack([np.asarray(Image.open(output / f"{i:05d}.png")) for i in range(3)])


@pytest.mark.parametrize("guidance", [None, 1.0])
def test_the_same_seed_makes_the_same_images(exported, guidance, tmp_path):
    saved, folder, photographs, masks = exported
    asked = [] if guidance is None else ["--guidance", str(guidance)]
    found = [made_by(folder, tmp_path / "made", *words(photographs, masks), *asked)]
    wanted = [Request(prompts=["a coat"], images=photographs, masks=masks, guidance=guidance)]
    if masks:  # without any, the middle is painted anew
        found.append(made_by(folder, tmp_path / "middle", *words(photographs, []), *asked))
        wanted.append(Request(prompts=["a coat"], images=photographs, guidance=guidance))
    pipeline = load_pipeline(saved)
    for images, request in zip(found, wanted, strict=True):
        reference = sample_images(pipeline, 3, steps=3, scheduler="dpm++", seed=5, request=request)
        assert np.abs(images.astype(int) - reference).mean() <= 1 / 3 and reference.std() > 20
    assert all((images[0] != images[1]).any() for images in found)


def test_what_is_asked_wrongly_is_one_line(exported, tmp_path, capsys):
    _, folder, photographs, masks = exported
    right = words(photographs, masks)
    (tmp_path / "text.png").write_text("no image")
    for asked, line in (
        (["--prompt", "a coat"], "this pipeline makes images of an image: give --image"),
        ([*right, "--image", str(tmp_path / "none.png")], "none.png cannot be read"),
        ([*right, "--image", str(tmp_path / "text.png")], "text.png cannot be read"),
        ([*right, "--class", "0"], f"takes a prompt and an image{' and a mask' if masks else ''}, not a class"),
        *([] if masks else [([*right, "--mask", str(photographs[0])], "takes a prompt and an image, not a mask")]),
    ):
        assert runner.main([*asked, "-n", "4", "-o", str(tmp_path / "out")], folder) == 2
        told = capsys.readouterr().err
        assert line in told and told.count("\n") == 1


def test_the_page_and_another_kind_of_sight_are_refused(exported, tmp_path, capsys):
    folder = exported[1]
    with pytest.raises(SlimdpmError, match="the page shows it none"):
        _copied(folder, tmp_path / "site")
    manifest = folder / "slimdpm.json"
    manifest.write_text(manifest.read_text().replace('"sees": "image', '"sees": "depth'))
    assert runner.main([*words([], []), "-o", str(tmp_path / "out")], folder) == 2
    assert "knows no network that sees 'depth" in capsys.readouterr().err


def test_an_encoder_that_does_not_fit_is_one_line(exported, tmp_path, capsys):
    _, folder, photographs, masks = exported
    manifest = json.loads((folder / "slimdpm.json").read_text())
    (folder / "slimdpm.json").write_text(json.dumps({**manifest, "shape": [4, 8, 4]}))
    assert runner.main([*words(photographs, masks), "-o", str(tmp_path / "out")], folder) == 2
    assert "the folder's encoder gives (1, 8, 8, 8) for 1 images: it is damaged" in capsys.readouterr().err

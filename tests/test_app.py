"""The app: what it makes, what it refuses, and the page in a browser.

python -m pytest tests/test_app.py --screenshots FOLDER keeps what the browser shows.
"""

import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel, VQModel
from helpers import NAMES, TINY, class_pipeline, latent_pipeline, text_pipeline
from rich.console import Console

from slimdpm import Request, SlimdpmError
from slimdpm.app.making import MOST_IMAGES, MOST_STEPS, make_images, open_networks
from slimdpm.app.server import served
from slimdpm.pipelines.sampling import sample_images
from slimdpm.pipelines.shell import network_of, shell_of
from slimdpm.pipelines.teacher import Teacher
from slimdpm.recipe_file import load_recipe
from slimdpm.system.progress import Display

pytestmark = pytest.mark.slow
SMALL = {"count": 2, "steps": 3, "scheduler": "ddim", "seed": 5}


def _networks(**pipelines):
    return {name: Teacher(name, network_of(p), shell_of(p)) for name, p in pipelines.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder whose recipe names its teacher."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("run")
    class_pipeline().save_pretrained(folder / "teacher")
    class_pipeline().save_pretrained(folder / "run" / "student")
    recipe = load_recipe(values={"task": "slim", "teacher": str(folder / "teacher"), "data": {"path": "images"}})
    (folder / "run" / "recipe.yaml").write_text(recipe.to_yaml())
    return folder / "run"


@pytest.mark.parametrize(
    ("kind", "request_", "scheduler", "calls"),
    [
        (class_pipeline, Request(classes=("dress",)), "ddim", 3),
        (lambda: latent_pipeline(VQModel), None, "heun", 5),
        ("text", Request(prompts=("a",), negative_prompt="b", guidance=3.0), "dpm++", 3),
    ],
)
def test_both_make_what_sampling_makes_of_the_same_noise(kind, request_, scheduler, calls, tmp_path):
    pipelines = {name: text_pipeline(tmp_path) if kind == "text" else kind() for name in ("teacher", "student")}
    options = {"steps": 3, "scheduler": scheduler, "seed": 5, "request": request_}
    told = list(make_images(_networks(**pipelines), count=2, **options))
    assert [name for name, _ in told] == ["student"] * (calls + 1) + ["teacher"] * (calls + 1)
    assert [made.done for _, made in told[:calls]] == list(range(1, calls + 1))
    for name, made in dict(told).items():  # the last of each
        assert made.steps == calls and made.decoding is not None
        np.testing.assert_array_equal(made.images, sample_images(pipelines[name], 2, **options))
    assert (dict(told)["teacher"].images != dict(told)["student"].images).any()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"count": MOST_IMAGES + 1}, "images: 17"),
        ({"count": 0}, "images: 0"),
        ({"steps": MOST_STEPS + 1}, "steps: 1001"),
        ({"seed": -1}, "seed: -1"),
        ({"scheduler": "DPMSolverSDEScheduler"}, "unknown scheduler"),
        ({"request": Request(guidance=float("nan"))}, "guidance: nan"),
        ({"request": Request(classes=(7,))}, "no class 7"),
        ({"request": Request(prompts=("a" * 1001,))}, "1,000 letters"),
    ],
)
def test_what_is_beyond_the_limits_is_refused_before_anything_is_made(wrong, words):
    with pytest.raises(SlimdpmError, match=words):
        next(make_images(_networks(teacher=class_pipeline(), student=class_pipeline()), **{**SMALL, **wrong}))


def test_the_recipe_names_the_teacher_and_a_student_stands_alone_without_it(run, tmp_path):
    found = open_networks(str(run), None, "cpu", Display())
    assert [*found] == ["teacher", "student"] and found["teacher"].name == str(run.parent / "teacher")
    moved = shutil.copytree(run, tmp_path / "moved")
    recipe = (moved / "recipe.yaml").read_text()
    (moved / "recipe.yaml").write_text(recipe.replace(str(run.parent / "teacher"), str(tmp_path / "none")))
    console = Console(record=True, width=500)
    assert [*open_networks(str(moved), None, "cpu", Display(console))] == ["student"]
    assert "the student alone" in console.export_text()
    DDPMPipeline(UNet2DModel(**{**TINY, "sample_size": 8}), DDIMScheduler()).save_pretrained(tmp_path / "other")
    with pytest.raises(SlimdpmError, match="cannot be compared"):
        open_networks(str(run), str(tmp_path / "other"), "cpu", Display())


@pytest.fixture(scope="module")
def address(run):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'slimdpm[app]'")
    before = dict(os.environ)
    with served(open_networks(str(run), None, "cpu", Display()), host="127.0.0.1", port=None) as address:
        yield address.rstrip("/")
    os.environ.clear()
    os.environ.update(before)


def _answer(url, headers=(), data=None):
    """Status and content; a redirection is an answer."""
    request = urllib.request.Request(url, headers=dict(headers), data=data)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def test_no_file_of_this_machine_is_read_through_the_server(address, run):
    secret = (run / "student" / "unet" / "config.json").read_bytes()
    working = Path.cwd() / "pyproject.toml"
    wanted = ["/etc/passwd", str(run / "recipe.yaml"), str(run / "student" / "unet" / "config.json"), str(working)]
    wanted += ["pyproject.toml", "./pyproject.toml", "../../../../../../../../etc/passwd", "file:///etc/passwd"]
    routes = [
        "/gradio_api/file=",
        "/file=",
        "/gradio_api/file/",
        "/file/",
        "/static/",
        "/assets/",
        "/gradio_api/stream/",
    ]
    for name in wanted:
        for route in routes:
            for quoted in (name, urllib.parse.quote(name, safe="")):
                status, content, _ = _answer(f"{address}{route}{quoted}")
                assert status >= 400 and len(content) < 1000, (route, name, status)
                assert not any(words in content for words in (b"root:", b"[project]", b"teacher:", secret))


def test_the_server_takes_no_file_and_answers_to_no_other_name(address):
    status, content, headers = _answer(address)
    assert (
        status == 200 and b"slimdpm" in content and headers["content-security-policy"].startswith("default-src 'self'")
    )
    port = address.rsplit(":", 1)[1]
    assert _answer(address, {"Host": f"localhost:{port}"})[0] == 200
    assert _answer(address, {"Host": f"evil.example:{port}"})[0] == 400
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\nhello\r\n--x--\r\n'
    status, _, _ = _answer(
        f"{address}/gradio_api/upload", {"Content-Type": "multipart/form-data; boundary=x"}, data=form
    )
    assert status >= 400


def test_a_click_makes_the_images_of_both(address, chromium, request):
    page = chromium.new_page(viewport={"width": 1000, "height": 800})
    asked, complaints = [], []
    page.on("request", lambda asked_: asked.append(asked_.url))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(address)
    page.get_by_role("spinbutton", name="number input for Steps").fill("3")
    page.get_by_label("Class", exact=True).click()
    assert page.get_by_role("option").all_inner_texts() == ["✓\nall in turn", *NAMES.values()]
    page.get_by_role("option", name="dress").click()
    page.get_by_role("button", name="Generate").click()
    for name in ("teacher", "student"):
        page.wait_for_function(f"document.querySelector('#{name} img')?.naturalWidth > 0")
        page.wait_for_function(f"document.querySelector('#{name}-said').innerText.includes('ms a step')")
    page.wait_for_selector("#spectra svg", state="attached")
    figures = page.locator("#figures").inner_text()
    assert all(words in figures for words in ("time of all", "parameters", "MACs", "ratio"))
    folder = request.config.getoption("--screenshots", None)
    if folder:
        page.screenshot(path=Path(folder) / "app.png", full_page=True)
    page.get_by_label("Scheduler", exact=True).click()
    page.get_by_role("option", name="pndm").click()
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("PNDMScheduler cannot take 3 steps (4 work)").wait_for()
    assert {urllib.parse.urlsplit(url).netloc for url in asked if url.startswith(("http", "ws"))} == {address[7:]}
    assert not complaints

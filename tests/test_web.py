"""A pipeline as a page: the site, its JavaScript against Python, and the page in a browser."""

import functools
import hashlib
import http.server
import json
import re
import shutil
import subprocess
import tarfile
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from helpers import NAMES, TINY, tiny_tokenizer
from onnx import helper, numpy_helper
from PIL import Image
from typer.testing import CliRunner

from slimdpm import ClassConditionalLDMPipeline, SlimdpmError
from slimdpm.cli.main import app
from slimdpm.export import runner
from slimdpm.export.folder import Samplers, _words_of, export_pipeline
from slimdpm.export.sampler_table import sampler_table
from slimdpm.export.web import runtime, site

PAGE = Path(site.__file__).parent / "page"
SMALL = {**TINY, "sample_size": 8, "block_out_channels": (8,), "add_attention": False}
SMALL |= {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """Runs a program that has `runner.js` as `R` and a value as `given`, and returns what it prints, a JSON."""
    driver = pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
    program = shutil.which("node") or str(Path(driver.__file__).parent / "driver" / "node")
    folder = tmp_path_factory.mktemp("node")
    shutil.copyfile(PAGE / "runner.js", folder / "runner.mjs")
    head = "import * as R from './runner.mjs'; import {readFileSync} from 'node:fs';"
    head += "const given = JSON.parse(readFileSync(0, 'utf-8')); const print = (v) => console.log(JSON.stringify(v));\n"

    def run(text, given):
        (folder / "program.mjs").write_text(head + text)
        done = subprocess.run(
            [program, folder / "program.mjs"], input=json.dumps(given), text=True, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def _graph(file, nodes, inputs, output, **weights):
    """A network by hand: as `export` would write it, in no time."""
    sides = {name: (kind, shape) for name, (kind, shape) in (*inputs.items(), output)}
    values = {name: helper.make_tensor_value_info(name, *told) for name, told in sides.items()}
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    nodes = [helper.make_node(kind, takes.split(), [gives], **options) for kind, takes, gives, options in nodes]
    graph = helper.make_graph(nodes, "graph", [values[name] for name in inputs], [values[output[0]]], tensors)
    file.parent.mkdir(exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)


FLOAT = onnx.TensorProto.FLOAT


def _manifest(folder, **told):
    file = folder / "slimdpm.json"
    manifest = json.loads(file.read_text()) if file.exists() else {"format": 1, "made by": "a test"}
    file.write_text(json.dumps({**manifest, **told, "files": {}}))
    names = [*folder.glob("*/model.onnx"), *(f for f in folder.glob("*.json") if f.name != file.name)]
    file.write_text(json.dumps({**manifest, **told, "files": _files(folder, names)}))


def _files(folder, files):
    contents = {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
    return {name: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in contents.items()}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Three classes, guided, in latents of 8x8: a real U-Net, and a decoder by hand that mixes channels."""
    torch.manual_seed(2)
    pipeline = ClassConditionalLDMPipeline(UNet2DModel(**SMALL, num_class_embeds=4), DDIMScheduler(), null_class=3)
    pipeline.register_to_config(id2label=NAMES)
    folder = tmp_path_factory.mktemp("web")
    pipeline.save_pretrained(folder / "saved")
    export_pipeline(str(folder / "saved"), made := folder / "onnx", samplers=Samplers((None, "ddpm"), (3, 4)))
    mixed = np.random.default_rng(0).normal(0, 0.3, (3, 3, 2, 2)).astype(np.float32)
    nodes = [("ConvTranspose", "latent_sample mixed", "sample", {"strides": [2, 2]})]
    sides = {"latent_sample": (FLOAT, ["b", 3, "h", "w"])}, ("sample", (FLOAT, ["b", 3, "2h", "2w"]))
    _graph(made / "vae_decoder" / "model.onnx", nodes, *sides, mixed=mixed)
    _manifest(made, decoder="vae_decoder/model.onnx", image=[3, 16, 16], step=2, scale=0.5)
    return made


@pytest.fixture(scope="module")
def tarball():
    """What the set-up has fetched; nothing is fetched here."""
    if not (kept := runtime.cache() / runtime.TARBALL).is_file():
        pytest.skip(f"ONNX Runtime Web {runtime.VERSION} was not fetched by npm")
    return kept


@pytest.fixture(scope="module")
def written(exported, tarball, tmp_path_factory):
    """The site, not at the root of its server."""
    root = tmp_path_factory.mktemp("server")
    site.write_site(str(exported), root / "some" / "where", teacher=str(exported), runtime=tarball)
    return root / "some" / "where"


# The runner in JavaScript is the runner in Python.


def test_noise_is_the_runners(node):
    asked = [[0, 0], [1, 7], [2**32 + 5, 0], [2**53 - 1, 10**6]]
    found = node(
        "print(given.map((a) => { const d = R.randomStream(...a); return [[...d(37)], [...d(640)]]; }));", asked
    )
    for (seed, image), (first, second) in zip(asked, found, strict=True):
        draw = runner.random_stream(seed, image)
        np.testing.assert_allclose(np.float32(first), draw((37,)), atol=1e-7)
        np.testing.assert_allclose(np.float32(second), draw((640,)), atol=1e-7)


def test_the_loop_is_the_runners(node):
    """On a network that bends, for samplers of each kind of memory, with noise on the way and without."""
    schedulers = [
        DDPMScheduler(prediction_type="v_prediction"),
        DDIMScheduler(prediction_type="sample", clip_sample=False),
        DPMSolverMultistepScheduler(),
        DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    ]
    tables = [json.loads(json.dumps(sampler_table(scheduler, 7).as_json())) for scheduler in schedulers]
    found = node(
        """const predict = (x, t) => x.map((v) => Math.tanh(0.7 * v + t / 2000));
        const made = [];
        for (const told of given) {
          const table = R.tableOf({schedulers: {s: {7: told}}}, "s", 7);
          made.push([...await R.denoise(predict, table, R.randomStream(3, 1), 75, () => {})]);
        }
        print(made);
        """,
        tables,
    )
    for table, made in zip(tables, found, strict=True):
        network = lambda x, t: np.tanh(0.7 * x.astype(float) + t / 2000).astype(np.float32)  # noqa: E731
        wanted = runner.denoise(network, table, [runner.random_stream(3, 1)], (3, 5, 5), lambda: None)
        np.testing.assert_allclose(np.reshape(made, (1, 3, 5, 5)), wanted, atol=1e-6 * np.abs(wanted).max())


def test_words_are_the_runners(node, tmp_path):
    pytest.importorskip("transformers")
    told = _words_of(tiny_tokenizer(tmp_path))
    told["merges"] = [["d", "r"], ["dr", "e"], ["s", "s</w>"], ["dre", "ss</w>"], ["a", "a"]]
    told["vocabulary"] |= {"dr": 60, "dre": 61, "ss</w>": 62, "dress</w>": 63, "aa": 64}
    (tmp_path / "tokens.json").write_text(json.dumps(told))
    texts = [
        "a dress",
        "Two  Cats' 3d é_x!?",
        "it's <|endoftext|> ok",
        "",
        "aaaaa x" * 9,
        "ça 日本\n½٣ \x1cΣΑΣ e\u0301🙂",
    ]
    found = node("const w = new R.Words(given[0]); print(given[1].map((t) => [...w.encode(t)]));", [told, texts])
    assert found == [runner.Words(tmp_path / "tokens.json")(text).tolist() for text in texts]


def test_pixels_are_the_runners(node):
    numbers = np.random.default_rng(0).uniform(-1.2, 1.2, 3 * 64).astype(np.float32)
    numbers[:4] = 2 * np.float32([0.5, 1.5, 2.5, 254.5]) / 255 - 1
    found = np.reshape(node("print([...R.pixelsOf(given, [3, 8, 8])]);", numbers.tolist()), (8, 8, 4))
    wanted = np.rint((numbers.reshape(3, 8, 8).clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
    assert (found[..., :3] == wanted).all() and (found[..., 3] == 255).all()


LIES = {
    "is of another format": {"format": 2},
    "the folder's shape 0 is 1000000, which cannot be": {"shape": [10**6, 8, 8]},
    "the folder's shape cannot be": {"shape": [8192, 8192, 8192]},
    'the folder\'s scale is "x", which cannot be': {"scale": "x"},
    "the folder's step is 0, which cannot be": {"step": 0},
    "names a file outside it: ../secret": {"files": {"../secret": {"bytes": 1, "sha256": "0"}}},
    "names a file outside it: https://": {"files": {"https://example.org/x": {"bytes": 1, "sha256": "0"}}},
    "names a file outside it: /etc": {"files": {"/etc/passwd": {"bytes": 1, "sha256": "0"}}},
    "names a file outside it: a/%2e%2e/b": {"files": {"a/%2e%2e/b": {"bytes": 1, "sha256": "0"}}},
    "bytes is 10000000000000, which cannot be": {"files": {"sampler.json": {"bytes": 10**13, "sha256": "0"}}},
    "the folder's files are incomplete: sampler.json": {"files": {}},
    "knows no condition of the kind sound": {"condition": {"kind": "sound", "guidance": 1}},
    "the folder's rows is 1000000000": {"condition": {"kind": "class", "guidance": 1, "rows": 10**9}},
    "the folder's null is 9": {"condition": {"kind": "class", "guidance": 1, "rows": 4, "null": 9, "names": {}}},
}


@pytest.mark.slow
def test_a_lying_manifest_is_refused(node, exported):
    manifest = json.loads((exported / "slimdpm.json").read_text())
    program = "print(given.map((m) => { try { R.checkManifest(m); return ''; } catch (e) { return e.message; } }));"
    found = node(program, [manifest, *({**manifest, **lie} for lie in LIES.values())])
    assert found[0] == ""
    for message, made in zip(LIES, found[1:], strict=True):
        assert message in made and "\n" not in made


# The site.


@pytest.mark.slow
def test_the_site_is_whole_and_names_nothing_outside(written):
    files = {file.relative_to(written).as_posix() for file in written.rglob("*") if file.is_file()}
    kept = json.loads(re.search(r"const FILES = (.*);", (written / "sw.js").read_text())[1])
    assert {name for name in kept if name != "./"} == {
        f for f in files if f != "sw.js" and not f.startswith(site._ON_DEMAND)
    }
    assert {"index.html", "model/unet/model.onnx", "teacher/unet/model.onnx", "runtime/ort.wasm.min.js"} <= files
    assert not any(file.endswith((".py", ".mjs", ".map")) for file in files)
    for name in ("index.html", "app.js", "runner.js", "worker.js", "sw.js", "style.css"):
        text = (written / name).read_text()
        assert not re.search(r"https?://|[\"'(]//|innerHTML|@version@", text), name
        for link in re.findall(r"(?:src|href)=\"([^\"]+)\"|from \"\./([^\"]+)\"", text):
            assert (written / "".join(link)).is_file() or link[0] == "data:,", link
    sizes = {name: (written / name).stat().st_size for name in files}
    assert sum(size for name, size in sizes.items() if "/" not in name) < 60e3


@pytest.mark.slow
def test_the_command_writes_a_site_or_nothing(exported, tarball, tmp_path, monkeypatch):
    def refused(*words):
        with pytest.raises(SlimdpmError) as error:
            invoke(*words)
        assert not (tmp_path / "site").exists()
        return str(error.value)

    def invoke(*words):
        CliRunner().invoke(app, ["export", str(exported), "-o", str(tmp_path / "site"), *words], catch_exceptions=False)

    assert "belong to --to web" in refused("--teacher", "x")
    assert "exported already" in refused("--to", "web", "--half", "--runtime", str(tarball))
    other = tmp_path / "other.tgz"
    with tarfile.open(other, "w:gz") as archive:
        archive.add(PAGE / "app.js", "package/dist/ort.wasm.min.mjs")
    assert "is not npm's onnxruntime-web 1.30.0, or damaged" in refused("--to", "web", "--runtime", str(other))
    (tmp_path / "package" / "dist").mkdir(parents=True)
    for name in runtime.FILES:
        (tmp_path / "package" / "dist" / name).write_text("alert(1)")
    assert "ort.wasm.min.mjs in" in refused("--to", "web", "--runtime", str(tmp_path / "package"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    assert "npm is not installed: fetch it where there is npm by `npm pack" in refused("--to", "web")
    lying = tmp_path / "lying"
    shutil.copytree(exported, lying)
    manifest = json.loads((lying / "slimdpm.json").read_text())
    (lying / "slimdpm.json").write_text(json.dumps({**manifest, "shape": [3, 4, 8]}))
    words = ("--to", "web", "--runtime", str(tarball))
    assert "is of another shape than the model" in refused(*words, "--teacher", str(lying))
    (lying / "unet" / "model.onnx").write_bytes(b"x")
    assert "model.onnx is damaged" in refused(*words, "--teacher", str(lying))
    invoke(*words)
    assert json.loads((tmp_path / "site" / "site.json").read_text()) == {"models": ["model"], "runtime": "1.30.0"}


def test_what_npm_brings_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "npm").write_text(f"#!/bin/sh\necho > {runtime.TARBALL}\n")
    (tmp_path / "npm").chmod(0o755)
    with pytest.raises(SlimdpmError, match="or damaged"):
        runtime.fetched()
    assert list(runtime.cache().iterdir()) == []
    (tmp_path / "npm").write_text("#!/bin/sh\necho no network >&2; exit 1\n")
    with pytest.raises(SlimdpmError, match=r"npm cannot fetch onnxruntime-web 1.30.0 \(no network\): fetch it where"):
        runtime.fetched()


# The page in a browser.


@pytest.fixture(scope="module")
def address(written):
    """Of the folder that holds sites, on a server that knows nothing."""
    root = written.parents[1]
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(chromium, address):
    """A new visitor; what is asked of any server but under the site's own path fails the test, as does any error."""
    context = chromium.new_context(viewport={"width": 1000, "height": 800})
    page = context.new_page()
    outside, errors = [], []
    page.on("request", lambda r: r.url.startswith((f"{address}/some/", "data:")) or outside.append(r.url))
    page.on("pageerror", lambda error: errors.append(error))
    yield page
    context.close()
    assert outside == [] and errors == []


DONE = "#status:has-text('Done'), #error:not(:empty)"


def made(page, label):
    """Click, wait, and return the images that can be downloaded: what the page shows, as arrays."""
    page.get_by_role("button", name="Generate").click()
    page.locator(DONE).first.wait_for(timeout=60_000)
    assert page.inner_text("#error") == ""
    images = []
    for link in page.get_by_role("link", name="Download PNG").all():
        with page.expect_download() as download:
            link.click()
        assert re.fullmatch(rf"(model|teacher)-{label}\.png", download.value.suggested_filename)
        images.append(np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int))
    return images


def runners(folder, tmp_path, *words):
    assert runner.main(["-o", str(tmp_path / "images"), *words], folder) == 0
    return np.asarray(Image.open(tmp_path / "images" / "00000.png").convert("RGB")).astype(int)


@pytest.mark.slow
def test_a_click_makes_the_runners_image(page, address, written, tmp_path):
    page.goto(f"{address}/some/where/")
    page.locator("#make:enabled").wait_for()
    page.get_by_label("Class").select_option("coat")
    page.get_by_label("Seed").fill("9007199254740991")
    page.get_by_label("Sampler").select_option("ddpm")
    page.get_by_label("Steps").select_option("4")
    page.get_by_label("Guidance").fill("2.5")
    found = made(page, "9007199254740991-ddpm-4")
    words = ("--class", "coat", "--seed", str(2**53 - 1), "--scheduler", "ddpm", "--steps", "4", "--guidance", "2.5")
    wanted = runners(written / "model", tmp_path, *words)
    for image in found:
        assert image.shape == wanted.shape == (16, 16, 3)
        assert np.abs(image - wanted).max() <= 1
    page.get_by_label("Height").fill("12")
    page.get_by_label("Width").fill("20")
    wanted = runners(written / "model", tmp_path, *words, "--size", "12x20")
    for image in made(page, "9007199254740991-ddpm-4"):
        assert image.shape == wanted.shape == (12, 20, 3)
        assert np.abs(image - wanted).max() <= 1
    times = page.locator(".each").first.text_content().split(", ")
    assert len(times) == 4 and all(float(time) >= 0 for time in times)
    assert "ms a step, decoder" in page.locator(".time").first.inner_text()
    assert page.get_by_role("img", name="Student: image of seed 9007199254740991, 4 steps of ddpm").count() == 1
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    shown = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).reshape(-1, 3)
    assert len(np.unique(shown, axis=0)) > 200  # two images, and no empty page


@pytest.mark.slow
def test_it_works_offline_after_the_first_visit(page, address, written, tmp_path):
    page.goto(f"{address}/some/where/")
    page.locator("#make:enabled").wait_for()
    page.locator("html[data-kept]").wait_for(state="attached")
    page.context.set_offline(True)
    page.reload()
    page.locator("#make:enabled").wait_for()
    page.get_by_label("Class").select_option("dress")
    found = made(page, "0-ddim-4")
    wanted = runners(written / "model", tmp_path, "--class", "dress", "--steps", "4")
    assert np.abs(found[0] - wanted).max() <= 1
    assert "thread" in page.inner_text("#status")


def _not_finite(folder):
    model = onnx.load(folder / "unet" / "model.onnx")
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 4:
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, np.nan), tensor.name))
    onnx.save(model, folder / "unet" / "model.onnx")
    _manifest(folder)


def _no_graph(folder):
    (folder / "unet" / "model.onnx").write_bytes(b"not a graph")
    _manifest(folder)


def _other_bytes(folder):
    file = folder / "unet" / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")


def _outside(folder):
    told = json.loads((folder / "slimdpm.json").read_text())
    (folder / "slimdpm.json").write_text(json.dumps({**told, "files": {"../x": {"bytes": 1, "sha256": ""}}}))


DAMAGES = {
    "slimdpm.json is missing (404)": lambda folder: (folder / "slimdpm.json").unlink(),
    "slimdpm.json cannot be read": lambda folder: (folder / "slimdpm.json").write_text("{"),
    "sampler.json is damaged: it has 3 bytes": lambda folder: (folder / "sampler.json").write_text("{}\n"),
    "unet/model.onnx is missing (404)": lambda folder: (folder / "unet" / "model.onnx").unlink(),
    "unet/model.onnx is damaged: its content is not what": _other_bytes,
    "unet/model.onnx is damaged: it is larger": lambda folder: (folder / "unet" / "model.onnx").open("ab").write(b"x"),
    "unet/model.onnx cannot be loaded": _no_graph,
    "names a file outside it: ../x": _outside,
    "the network's output is not finite": _not_finite,
    "the runtime failed": lambda folder: _manifest(folder, shape=[2, 8, 8]),
}


@pytest.mark.slow
def test_what_is_broken_is_said_on_the_page(page, address, written):
    """In one line of its alert region, and nothing of it is shown as markup."""
    for number, (message, spoil) in enumerate(DAMAGES.items()):
        broken = written.parent / f"broken-{number}"
        shutil.copytree(written, broken, ignore=shutil.ignore_patterns("runtime", "sw.js"))  # each visit is the first
        (broken / "runtime").symlink_to(written / "runtime")
        spoil(broken / "model")
        page.goto(f"{address}/some/{broken.name}/")
        page.locator("#make:enabled, #error:not(:empty)").first.wait_for()
        if page.inner_text("#error") == "":
            page.get_by_role("button", name="Generate").click()
            page.locator(DONE).first.wait_for()
        assert message in page.get_by_role("alert").inner_text()


@pytest.mark.slow
def test_keyboard_and_screen_readers_find_their_way(page, address):
    page.goto(f"{address}/some/where/")
    page.locator("#make:enabled").wait_for()
    names = []
    for _ in range(11):
        page.keyboard.press("Tab")
        names.append(page.locator(":focus").get_attribute("id"))
        assert page.locator(":focus-visible").count() == 1
    order = ["class", "seed", "dice", "sampler", "steps", "height", "width", "guidance", "device", "make", None]
    assert names == order
    page.get_by_label("Seed").fill("1.5")
    page.get_by_role("button", name="Generate").click()
    assert "the seed is a whole number" in page.get_by_role("alert").inner_text()
    page.get_by_label("Seed").fill("1")
    page.get_by_label("Width").fill("17")
    page.get_by_role("button", name="Generate").click()
    assert "height and width are multiples of 2, from 4 to 8192" in page.get_by_role("alert").inner_text()
    page.set_viewport_size({"width": 320, "height": 640})
    box = page.locator("main").bounding_box()
    assert box["x"] + box["width"] <= 320  # nothing to be scrolled to on a small phone
    for field in page.locator("input:visible, select:visible, button:visible").all():
        assert field.bounding_box()["height"] >= 40

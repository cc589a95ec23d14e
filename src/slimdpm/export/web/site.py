"""A site of static files that makes images in the browser that opens it.

index.html app.js style.css     the page
worker.js runner.js     the loop of `slimdpm.export.runner` in JavaScript
sw.js     keeps the site for the times without a network
site.json     what is there
model/ teacher/     exported folders, of them what the page reads
runtime/     ONNX Runtime Web
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from slimdpm.export import runner
from slimdpm.export.folder import Samplers, export_pipeline
from slimdpm.export.storage import Weights
from slimdpm.export.web.runtime import VERSION, WEBGPU, checked, write_runtime
from slimdpm.system.amounts import storage
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.files import atomic_folder, check_new, write_json
from slimdpm.system.hashing import digest, file_digests
from slimdpm.system.progress import Display
from slimdpm.system.sizes import Size

_PAGE = Path(__file__).parent / "page"
_LARGEST = 2**31  # bytes of a graph: WebAssembly holds no more


def write_site(
    source: str,
    output: Path,
    *,
    teacher: str | None = None,
    runtime: Path | None = None,
    samplers: Samplers | None = None,
    weights: Weights = "float32",
    size: Size | None = None,
    display: Display | None = None,
) -> None:
    """Write a pipeline, and its teacher beside it, as a site for any static server.

    Args:
        source: a run folder, a diffusers folder, a hub id, or what `slimdpm.export.folder` wrote.
        output: the new folder.
        teacher: another of these, to be shown beside it from the same noise.
        runtime: npm's tarball of ONNX Runtime Web or the unpacked package; by default npm fetches it, once.
        samplers: that the page offers.
        weights: how they are kept.
        size: of the images in pixels, for good; by default the pipelines' own and any other that both take.
        display: where progress is shown.

    Raises:
        SlimdpmError: as the exporter; for a runtime that is not the pinned one; for a pair that does not belong
            together or a network that no browser holds.
    """
    display = display or Display()
    check_new(output)
    models = {"model": source} | ({"teacher": teacher} if teacher else {})
    package = checked(runtime)  # before what takes long
    with atomic_folder(output) as site:
        told = {}
        for place, wanted in models.items():
            display.say(f"{place}: {wanted}")
            told[place] = _write_model(wanted, site / place, samplers, weights, size)
        _check_pair(told)
        (site / "runtime").mkdir()
        write_runtime(package, site / "runtime")
        shutil.copytree(_PAGE, site, dirs_exist_ok=True)
        write_json(site / "site.json", {"models": list(models), "runtime": VERSION})
        _write_worker(site)
    sizes = {name: sum(f.stat().st_size for f in (output / name).rglob("*") if f.is_file()) for name in models}
    parts = ", ".join(f"{name} {storage(size)}" for name, size in sizes.items())
    display.say(f"{output}: {parts}; look at it with python -m http.server -d {output}")


def _write_model(
    source: str, folder: Path, samplers: Samplers | None, weights: Weights, size: Size | None
) -> dict[str, Any]:
    """What the page reads of a pipeline; returns the manifest."""
    exported = Path(source).expanduser()
    if (exported / "slimdpm.json").is_file():
        if weights != "float32" or samplers not in (None, Samplers()) or size is not None:
            raise SlimdpmError(f"{source} is exported already: its weights, samplers and size are as they are")
        return _copied(exported, folder)
    whole = folder.with_name(f"{folder.name}-whole")
    export_pipeline(source, whole, samplers=samplers, weights=weights, size=size)
    manifest = _copied(whole, folder)
    shutil.rmtree(whole)
    return manifest


def _copied(exported: Path, folder: Path) -> dict[str, Any]:
    """Of an exported folder the files that the page reads, once all are found whole."""
    try:
        manifest = runner.manifest_of(exported)
    except runner.Wrong as error:
        raise SlimdpmError(error) from error
    if not manifest["unet"].endswith(".onnx"):
        raise SlimdpmError(f"{exported} is of another runtime: a page needs ONNX")
    if "text_encoder_2" in manifest:
        raise SlimdpmError(f"{exported} is Stable Diffusion XL, and the page knows one text encoder: use generate.py")
    if "encoder" in manifest:
        raise SlimdpmError(f"{exported} makes images of an image, and the page shows it none: use generate.py")
    graphs = [manifest[key] for key in ("unet", "decoder", "text_encoder") if key in manifest]
    wanted = [name for name in ("sampler.json", "tokens.json", *graphs) if name in manifest["files"]]
    beside = {name for name in manifest["files"] for graph in graphs if name.startswith(f"{graph}.")}
    if beside or max((exported / name).stat().st_size for name in wanted) > _LARGEST:
        raise SlimdpmError(f"{exported} is too large for a browser: a graph of 2 GB at most")
    for name in wanted:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(exported / name, folder / name)
    manifest["files"] = {name: manifest["files"][name] for name in wanted}
    write_json(folder / "slimdpm.json", manifest)
    return manifest


def _check_pair(told: dict[str, dict[str, Any]]) -> None:
    """One form asks both: they start from the same noise and take the same words."""
    if "teacher" not in told:
        return
    for key in ("shape", "image", "condition"):
        if told["model"][key] != told["teacher"][key]:
            raise SlimdpmError(f"--teacher is of another {key} than the model: the page shows them side by side")


def _write_worker(site: Path) -> None:
    """The service worker: which files the site has, and a version that changes with any of them."""
    files = sorted(file for file in site.rglob("*") if file.is_file())
    names = [file.relative_to(site).as_posix() for file in files]
    version = digest(text.encode() for text in (*names, *file_digests(files)))
    kept = ["./", *(name for name in names if name != "sw.js" and not name.startswith(_ON_DEMAND))]
    worker = site / "sw.js"
    text = worker.read_text(encoding="utf-8").replace("@version@", version)
    worker.write_text(text.replace('["@files@"]', json.dumps(kept)), encoding="utf-8")


_ON_DEMAND = tuple(f"runtime/{name}" for name in WEBGPU)  # 27 MB that only some browsers need: kept once used

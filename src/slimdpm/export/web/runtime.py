"""ONNX Runtime Web, which computes in the page: one version, fetched once and known by its digest."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from slimdpm.system.documents import read_bytes
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.files import explained
from slimdpm.system.hashing import file_digest

VERSION = "1.30.0"
TARBALL = f"onnxruntime-web-{VERSION}.tgz"
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"  # of npm's tarball
# Of the package's dist/. Named .js in a site: not every server knows that .mjs is a script.
FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs": "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
    "ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
}
WEBGPU = ("ort.webgpu", "ort-wasm-simd-threaded.asyncify")  # how the names begin of what only WebGPU needs
_LARGEST = 64 * 2**20  # bytes of a file
_HELP = f"fetch it where there is npm by `npm pack onnxruntime-web@{VERSION}` and give the file as --runtime"


def cache() -> Path:
    """Where the tarball is kept for this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slimdpm"


def fetched() -> Path:
    """The tarball in the user's cache; npm brings it there if it is not.

    Raises:
        SlimdpmError: without npm, without a network, or if what came is not what is pinned here.
    """
    kept = cache() / TARBALL
    if kept.is_file():
        _check(kept)
        return kept
    npm = shutil.which("npm")
    if npm is None:
        raise SlimdpmError(f"a page needs ONNX Runtime Web, and npm is not installed: {_HELP}")
    with explained(kept):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            words = [npm, "pack", "--ignore-scripts", "--silent", f"onnxruntime-web@{VERSION}"]
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
            found = Path(folder) / TARBALL
            if done.returncode or not found.is_file():
                reason = (done.stderr or done.stdout).strip().splitlines() or ["it says nothing"]
                raise SlimdpmError(f"npm cannot fetch onnxruntime-web {VERSION} ({reason[-1]}): {_HELP}")
            _check(found)
            found.replace(kept)
    return kept


def checked(source: Path | None) -> Path:
    """A package that `write_runtime` takes: npm's tarball, the package unpacked, or by default `fetched`.

    Raises:
        SlimdpmError: if it is not the pinned version, or cannot be had.
    """
    if source is None:
        return fetched()
    if not source.is_dir():
        _check(source)
    return source


def write_runtime(package: Path, folder: Path) -> None:
    """Put the runtime's files into a folder that is there already.

    Raises:
        SlimdpmError: if one is missing or not the pinned version's.
    """
    for name, content in _contents(package):
        if hashlib.sha256(content).hexdigest() != FILES[name]:
            raise SlimdpmError(f"{name} in {package} is not that of onnxruntime-web {VERSION}: {_HELP}")
        (folder / name.replace(".mjs", ".js")).write_bytes(content)


def _contents(package: Path) -> Iterator[tuple[str, bytes]]:
    """The files with their names; of a tarball nothing else is read, and nothing unpacked."""
    if package.is_dir():
        place = package / "dist" if (package / "dist").is_dir() else package
        for name in FILES:
            yield name, read_bytes(place / name, _LARGEST)
        return
    with tarfile.open(package, "r:gz") as archive:  # whose digest is npm's: it is what it should be
        for member in archive:
            name = member.name.removeprefix("package/dist/")
            content = archive.extractfile(member) if name in FILES else None
            if content is not None:
                yield name, content.read(_LARGEST)


def _check(tarball: Path) -> None:
    if file_digest(tarball, "sha256") != SHA256:
        raise SlimdpmError(f"{tarball} is not npm's onnxruntime-web {VERSION}, or damaged: {_HELP}")

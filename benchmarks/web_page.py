"""A site of `slimdpm export --to web` in headless Chromium: milliseconds of a step, and pictures of the page.

slimdpm export slimdpm:garments-12x --to web --teacher slimdpm:garments-teacher -o site
python benchmarks/web_page.py site -o benchmarks/results/web_page.json --pictures docs/figures --class t-shirt
"""

from __future__ import annotations

import argparse
import functools
import gzip
import http.server
import json
import platform
import re
import shutil
import statistics
import threading
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
VIEWS: dict[str, dict[str, Any]] = {
    "web-page": {"viewport": {"width": 900, "height": 700}},
    "web-page-dark": {"viewport": {"width": 900, "height": 700}, "color_scheme": "dark"},
    "web-page-phone": {"viewport": {"width": 360, "height": 700}, "device_scale_factor": 2, "is_mobile": True},
}
PARTS = {
    "page": lambda name: "/" not in name,
    "model": lambda name: name.startswith("model/"),
    "teacher": lambda name: name.startswith("teacher/"),
    "WebAssembly": lambda name: name.startswith("runtime/") and not _webgpu(name),
    "WebGPU": lambda name: name.startswith("runtime/") and _webgpu(name),
}


def _webgpu(name: str) -> bool:
    return "webgpu" in name or "asyncify" in name


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("site", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--class", dest="wanted", help="that the pictures show, with --guidance")
    parser.add_argument("--guidance", type=float, default=3.0)
    options = parser.parse_args()
    program = next(filter(None, map(shutil.which, BROWSERS)))
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=options.site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        times = measured(browser, address, options.images)
        if options.pictures:
            for name, view in VIEWS.items():
                picture(browser, address, options, view, options.pictures / f"{name}.png")
        told = {"browser": f"Chromium {browser.version}, headless", "machine": platform.machine()}
    result = {**told, "sizes": sizes(options.site), "steps": times}
    options.output.write_text(json.dumps(result, indent=2) + "\n")


def measured(browser: Browser, address: str, images: int) -> dict[str, dict[str, Any]]:
    """By the number of threads: of each model the median of a step's milliseconds, of each image's median."""
    page = browser.new_context().new_page()
    page.goto(address)
    found = {}
    for _ in range(2):  # the first visit has one thread; the second all, since the service worker serves it
        medians: list[list[float]] = []
        for number in range(images + 1):
            where = generate(page, str(number))
            each = [
                [float(n) for n in text.split(", ")] for text in page.locator(".each").all_text_contents()
            ]  # of each model
            if number:  # the first image warms up
                medians.append([statistics.median(times) for times in each])
        columns = dict(zip(("model", "teacher"), zip(*medians, strict=True), strict=False))
        found[where] = {name: round(statistics.median(times), 1) for name, times in columns.items()}
        page.locator("html[data-kept]").wait_for(state="attached")
        page.reload()
    return found


def generate(page: Page, seed: str) -> str:
    """Make an image; returns what it ran on."""
    page.locator("#make:enabled").wait_for()
    page.get_by_label("Seed", exact=True).fill(seed)
    page.get_by_role("button", name="Generate").click()
    page.locator("#make:disabled").wait_for()
    page.locator("#make:enabled").wait_for(timeout=300_000)
    status = page.locator("#status").inner_text()
    return re.search(r"with (.+?)\.( |$)", status)[1]  # type: ignore[index]


def picture(browser: Browser, address: str, options: argparse.Namespace, view: dict[str, Any], file: Path) -> None:
    context = browser.new_context(**view)
    page = context.new_page()
    page.goto(address)
    generate(page, options.seed)  # warm
    if options.wanted:
        page.locator("#class").select_option(label=options.wanted)
        page.locator("#guidance").fill(f"{options.guidance:g}")
    generate(page, options.seed)
    page.screenshot(path=file, full_page=True)
    context.close()


def sizes(site: Path) -> dict[str, dict[str, int]]:
    files = {file.relative_to(site).as_posix(): file.read_bytes() for file in site.rglob("*") if file.is_file()}
    found = {}
    for part, belongs in PARTS.items():
        contents = [content for name, content in files.items() if belongs(name)]
        found[part] = {"bytes": sum(map(len, contents)), "gzip": sum(len(gzip.compress(c, 6)) for c in contents)}
    return found


if __name__ == "__main__":
    main()

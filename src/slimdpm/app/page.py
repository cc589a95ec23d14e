"""The page: controls, the images of each network, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil, sqrt
from typing import Any

import numpy as np

from slimdpm.app.making import (
    LONGEST_PROMPT,
    MOST_GUIDANCE,
    MOST_IMAGES,
    MOST_SEED,
    MOST_STEPS,
    Made,
    class_numbers,
    make_images,
)
from slimdpm.conditioning import ClassLabels, Request, Text
from slimdpm.data.images import grid, zoom_for
from slimdpm.method.cost import measure
from slimdpm.metrics.spectrum import radial_spectrum
from slimdpm.pipelines.sampling import SCHEDULERS, default_steps
from slimdpm.pipelines.teacher import Teacher
from slimdpm.report.figures import spectra_figure
from slimdpm.system import amounts
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.text import one_line

_ALL = -1  # in place of a class: all in turn


def table(networks: Mapping[str, Teacher], made: Mapping[str, Made]) -> str:
    """Time and cost of each network, as Markdown, with the ratio of two."""
    costs = {k: measure(n.config, size=n.shell.size, tokens=n.shell.conditioning.tokens) for k, n in networks.items()}
    rows: list[tuple[str, list[float], Callable[[float], str]]] = [
        ("time of all", [m.seconds + (m.decoding or 0) for m in made.values()], lambda s: f"{s:.2f} s"),
        ("a step (median)", [m.step for m in made.values()], lambda s: f"{1e3 * s:.1f} ms"),
        ("parameters", [c.params for c in costs.values()], amounts.parameters),
        ("MACs (conv+linear)", [c.macs for c in costs.values()], amounts.macs),
    ]
    if any(network.shell.autoencoder is not None for network in networks.values()):
        rows.insert(2, ("decoding", [m.decoding or 0 for m in made.values()], lambda s: f"{s:.2f} s"))
    heads = ["", *networks, *(["ratio"] if len(networks) > 1 else [])]
    lines = [heads, ["---"] + ["--:"] * (len(heads) - 1)]
    for name, values, form in rows:
        ratio = [f"{values[0] / values[1]:.1f}×"] if len(values) > 1 else []
        lines.append([name, *map(form, values), *ratio])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(networks: Mapping[str, Teacher], prompt: str = "") -> Any:
    """The page, gradio's `Blocks`. `prompt` is the first one."""
    import gradio as gr

    first = next(iter(networks.values()))
    conditioning = first.shell.conditioning
    guided = isinstance(conditioning, Text) or getattr(conditioning, "null", None) is not None
    with gr.Blocks(title="slimdpm", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gr.Markdown(f"# {' and '.join(networks).capitalize()}{' from the same noise' if len(networks) > 1 else ''}")
        with gr.Row():
            with gr.Column(scale=1, min_width=240):
                controls = {
                    "count": gr.Slider(1, MOST_IMAGES, 4, step=1, label="Images"),
                    "steps": gr.Slider(1, MOST_STEPS, default_steps(first.shell, "ddim"), step=1, label="Steps"),
                    "scheduler": gr.Dropdown(list(SCHEDULERS), value="ddim", label="Scheduler"),
                    "seed": gr.Number(0, precision=0, minimum=0, maximum=MOST_SEED, label="Seed"),
                }
                if isinstance(conditioning, ClassLabels):
                    controls["label"] = gr.Dropdown(_choices(networks), value=_ALL, label="Class")
                if isinstance(conditioning, Text):
                    controls["prompt"] = gr.Textbox(prompt, label="Prompt", max_length=LONGEST_PROMPT)
                    controls["negative"] = gr.Textbox("", label="Negative prompt", max_length=LONGEST_PROMPT)
                if guided:
                    scale = conditioning.scale  # type: ignore[attr-defined]
                    controls["guidance"] = gr.Slider(
                        1, MOST_GUIDANCE, scale, step=0.1, label="Guidance", info="1 is none"
                    )
                button, stop = gr.Button("Generate", variant="primary"), gr.Button("Stop")
            with gr.Column(scale=4):
                with gr.Row():
                    shown = {name: _place(name) for name in networks}
                figures = gr.Markdown(elem_id="figures"), gr.HTML(elem_id="spectra")
        outputs = [*(part for pair in shown.values() for part in pair), *figures]
        generate = _generate(networks, list(controls), shown, figures)
        running = button.click(generate, list(controls.values()), outputs, show_progress="hidden", concurrency_limit=1)
        stop.click(None, cancels=[running])
    return blocks


def _choices(networks: Mapping[str, Teacher]) -> list[tuple[str, int]]:
    known = [n.shell.conditioning for n in networks.values()]
    names = next((k.names for k in known if isinstance(k, ClassLabels) and k.names), None)
    numbers = class_numbers(next(iter(networks.values())).shell)
    return [("all in turn", _ALL), *zip(names or map(str, numbers), numbers, strict=True)]


def _place(name: str) -> tuple[Any, Any]:
    """Where a network's images and what is said of them are shown."""
    import gradio as gr

    with gr.Column(min_width=140):  # beside each other on a phone, too
        said = gr.Markdown(f"**{name.capitalize()}**", elem_id=f"{name}-said")
        image = gr.Image(
            label=name, show_label=False, format="png", interactive=False, elem_id=name, elem_classes="made",
            buttons=["download"],
        )  # fmt: skip
    return said, image


def _generate(
    networks: Mapping[str, Teacher],
    names: Sequence[str],
    shown: Mapping[str, tuple[Any, Any]],
    figures: tuple[Any, Any],
) -> Callable[..., Iterator[dict]]:
    """What the button does, with the values of the controls of these names."""
    import gradio as gr

    def generate(*values: Any) -> Iterator[dict]:
        given = dict(zip(names, values, strict=True))
        finished: dict[str, Made] = {}
        yield {part: None for pair in shown.values() for part in pair[1:]} | {figures[0]: "", figures[1]: ""}
        try:
            for name, made in make_images(
                networks,
                count=int(given["count"]),
                steps=int(given["steps"]),
                scheduler=given["scheduler"],
                seed=int(given["seed"] or 0),
                request=_request(given),
            ):
                said, image = shown[name]
                finished |= {name: made} if made.decoding is not None else {}
                yield {said: f"**{name.capitalize()}** · {_progress(made)}", image: _sheet(made.images)}
        except SlimdpmError as error:
            raise gr.Error(one_line(str(error)), duration=None, print_exception=False) from error
        ordered = {name: finished[name] for name in networks}
        spectra = {name: radial_spectrum(made.images) for name, made in ordered.items()}
        yield {figures[0]: table(networks, ordered), figures[1]: spectra_figure(spectra)}

    return generate


def _request(given: Mapping[str, Any]) -> Request:
    label, prompt = given.get("label", _ALL), given.get("prompt")
    return Request(
        classes=() if label == _ALL else (label,),
        prompts=() if prompt is None else (prompt,),
        negative_prompt=given.get("negative") or None,
        guidance=given.get("guidance"),
    )


def _progress(made: Made) -> str:
    if made.decoding is None:
        return f"step {made.done} of {made.steps}"
    return f"{made.seconds + made.decoding:.2f} s, {1e3 * made.step:.1f} ms a step"


def _sheet(images: np.ndarray) -> np.ndarray:
    """Images ``(N, H, W, C)`` as one, as square as they go."""
    return np.asarray(grid(images, ceil(sqrt(len(images))), zoom=2 * zoom_for(images)).convert("RGB"))

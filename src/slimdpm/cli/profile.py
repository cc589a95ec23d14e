"""The command that says what networks cost: parameters, megabytes, MACs and milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Annotated, Any

import typer
from rich.console import Console

from slimdpm.cli.measure import size_option
from slimdpm.system import amounts
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.progress import Display, figures_table

console = Console()


def profile(
    models: Annotated[list[str] | None, typer.Argument(help="Presets, config.json files, or folders with one.")] = None,
    against: Annotated[str | None, typer.Option(help="Print each one's ratio to this network.")] = None,
    ratio: Annotated[
        str | None,
        typer.Option(help="Add the first network's students of these ratios, plain and gated, for example 4,8."),
    ] = None,
    speedup: Annotated[
        str | None, typer.Option(help="Add the students that are so many times faster here, for example 4,8.")
    ] = None,
    size: Annotated[Any, size_option("Of the input in (latent) pixels.  [default: the config's]")] = None,
    time: Annotated[bool, typer.Option("--time", help="Measure milliseconds on this machine.")] = False,
    batch: Annotated[str, typer.Option(help="Of --time: batch sizes.")] = "1,8",
    runtime: Annotated[
        str, typer.Option(help="Of --time and --speedup: pytorch, or on the CPU onnxruntime or openvino.")
    ] = "pytorch",
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="Of --time: calls of each network.")] = 20,
    image: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="Of pipelines: seconds of an image of so many steps, part by part."),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Milliseconds by kind of layer, batch 1.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps.  [default: the best there is]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What networks cost, by their configs alone: no weights are read. Without MODELS: all presets.

    MACs are of one forward pass, batch 1. *conv+linear* counts convolutions and linear layers, as papers do; *all*
    adds the products inside attention. MB are of the weights in single precision. With --time random weights are made
    and the networks take turns, each in the memory format in which it is faster; the figure is the median, with the
    quartiles in --json; peak MB are the weights and what else lives at once in a call of PyTorch, by shapes. --runtime
    exports them first, as ``slimdpm export`` would, and times the graphs.

        slimdpm profile ldm4-spectral ldm4-lite --against ldm4

        slimdpm profile path/to/pipeline --ratio 4,8,12,18 --speedup 4,8 --time

        slimdpm profile path/to/pipeline --speedup 4,8,12 --time --runtime onnxruntime

        slimdpm profile path/to/pipeline --ratio 4,12 --image 50
    """
    from slimdpm.method.presets import PRESETS, find_network

    _check_runtime(runtime, device, bool(layers or image))
    networks = [find_network(name) for name in models or PRESETS]
    teacher = networks[0] if size is None else replace(networks[0], config={**networks[0].config, "sample_size": size})
    networks += _students(teacher, numbers(ratio or "", "--ratio", float))
    networks += _timed_students(teacher, numbers(speedup or "", "--speedup", float), device, runtime)
    if size is not None:
        networks = [replace(network, config={**network.config, "sample_size": size}) for network in networks]
    values = _costs(networks, find_network(against) if against else None, size)
    machine = None
    if time or layers:
        batches = numbers(batch, "--batch", int) if time else []
        machine = _time(values, networks, batches, rounds, layers, device, runtime, silent=as_json)
    if image:
        _time_images(values, models or [], networks, image, size, device, silent=as_json)
    if as_json:
        print(json.dumps(values, indent=2))
        return
    _show(networks, values, against)
    if machine:
        console.print(f"measured on: {machine}; median of {rounds} calls that take turns", highlight=False)


def _show(networks: Sequence[Any], values: Mapping[str, Mapping[str, Any]], against: str | None) -> None:
    """A table of what is counted, and one for each thing that was measured."""
    first = next(iter(values.values()))
    headings = ["network", "parameters", "MB", "MACs conv+linear", "MACs all"]
    headings += [f"{against} ÷ it"] if against else []
    rows = [[network.name, *_cells(values[network.name]), network.note] for network in networks]
    console.print(figures_table([*headings, ""], rows, texts=(0, len(headings))))
    tables: list[tuple[list[str], Callable[[Mapping[str, Any]], list[str]]]] = []
    if sizes := first.get("seconds"):
        heads = [f"{what}, batch {size}" for what in ("ms", "peak MB") for size in sizes]
        tables.append((["a call", *heads], _of_calls))
    if kinds := first.get("layer_seconds"):
        tables.append((["ms by kind of layer", *kinds], _of_layers))
    if image := first.get("image"):
        tables.append((["seconds of an image", "condition", f"{image['steps']} steps", "decoder", "whole"], _of_image))
    for heads, cells in tables:
        console.print()
        console.print(figures_table(heads, [[name, *cells(about)] for name, about in values.items()]))


def _check_runtime(runtime: str, device: str | None, parts: bool) -> None:
    from slimdpm.method.runtimes import PYTORCH, RUNTIMES, described_runtime

    if runtime not in RUNTIMES:
        raise SlimdpmError(f"--runtime {runtime}: choose {', '.join(RUNTIMES)}")
    if runtime != PYTORCH and (parts or device not in (None, "cpu")):
        raise SlimdpmError(
            f"--runtime {runtime} runs whole networks on the CPU: leave out --layers, --image and --device"
        )
    described_runtime(runtime)  # raises if it is not installed


def _costs(networks: Sequence[Any], against: Any, size: Any) -> dict[str, dict[str, Any]]:
    """What can be counted of each of these `Preset`, by its name."""
    from slimdpm.method.cost import measure

    costs = {network.name: measure(network.config, tokens=network.tokens) for network in networks}
    values = {name: {**vars(cost), "megabytes": cost.megabytes} for name, cost in costs.items()}
    if against is not None:
        reference = measure(against.config, size=size, tokens=against.tokens)
        for name, cost in costs.items():
            values[name]["ratio"] = reference.macs / cost.macs
    return values


def _students(teacher: Any, ratios: Sequence[float]) -> list[Any]:
    """The students that ``slimdpm slim`` would make of a network, plain and gated."""
    from slimdpm.method.inherit import MIXING
    from slimdpm.method.slimming import Budget, plan_student

    students = []
    for ratio, (kind, overrides) in product(ratios, {"plain": {}, "spectral": MIXING}.items()):
        plan = plan_student(teacher.config, Budget(ratio=ratio), kind=kind, overrides=overrides, tokens=teacher.tokens)
        name = f"÷ {ratio:g}" + (", gated" if kind == "spectral" else "")
        students.append(replace(teacher, name=name, config=plan.config, note=f"student of {teacher.name}"))
    return students


def _timed_students(teacher: Any, speedups: Sequence[float], device: str | None, runtime: str) -> list[Any]:
    """The students that ``slimdpm slim --speedup`` would make of a network."""
    from slimdpm.method.runtimes import device_of
    from slimdpm.method.timed_plan import Stopwatch, TimeBudget, plan_in_time

    if not speedups:
        return []
    watch = Stopwatch(teacher.config, device_of(runtime, device), tokens=teacher.tokens, runtime=runtime)
    students = []
    for speedup in speedups:
        plan = plan_in_time(teacher.config, TimeBudget(speedup), watch, tokens=teacher.tokens)
        note = f"student of {teacher.name}, {plan.student_seconds * 1e3:.1f} ms"
        students.append(replace(teacher, name=f"{speedup:g} times faster", config=plan.config, note=note))
    return students


def _time(
    values: dict[str, dict[str, Any]],
    networks: Sequence[Any],
    batches: Sequence[int],
    rounds: int,
    layers: bool,
    device: str | None,
    runtime: str,
    *,
    silent: bool,
) -> str:
    """Put seconds beside the costs. Returns on what they were measured."""
    from slimdpm.method.latency import best_latencies, layer_seconds, random_network
    from slimdpm.method.live_memory import peak_bytes
    from slimdpm.method.runtimes import PYTORCH, described_runtime, device_of, exported_call, exported_latencies
    from slimdpm.system.machine import device_facts

    place = device_of(runtime, device)
    built = {network.name: random_network(network.config, place) for network in networks}
    tokens = {network.name: network.tokens for network in networks}
    work = len(batches) + (len(built) if layers else 0)
    with Display(None if silent else Console(stderr=True)).task("measuring", work, unit="passes") as task:
        for size in batches:
            if runtime == PYTORCH:
                found = best_latencies(built, rounds=rounds, batch=size, tokens=tokens)
                timed = {name: {**vars(latency), "memory_format": form} for name, (latency, form) in found.items()}
            else:
                calls = {n: exported_call(net, runtime, batch=size, tokens=tokens[n]) for n, net in built.items()}
                timed = {name: vars(latency) for name, latency in exported_latencies(calls, rounds).items()}
            for name, about in timed.items():
                values[name].setdefault("seconds", {})[size] = about
            for network in networks:
                peak = peak_bytes(network.config, batch=size, tokens=network.tokens)
                values[network.name].setdefault("peak_bytes", {})[size] = peak
            task.advance()
        for name, network in built.items() if layers else ():
            values[name]["layer_seconds"] = layer_seconds(network, rounds=rounds, tokens=tokens[name])
            task.advance()
    return f"{device_facts(place)}, {described_runtime(runtime)}"


def _time_images(
    values: dict[str, dict[str, Any]],
    models: Sequence[str],
    networks: Sequence[Any],
    steps: int,
    size: Any,
    device: str | None,
    *,
    silent: bool,
) -> None:
    """Put an `ImageTime` beside the costs: of each pipeline, and of students in that of the first."""
    from slimdpm.method.latency import random_network
    from slimdpm.pipelines.image_time import image_times
    from slimdpm.pipelines.loading import load_pipeline
    from slimdpm.pipelines.shell import network_of, shell_of
    from slimdpm.system.processes import pick_device
    from slimdpm.system.sizes import each_side

    if not models:
        raise SlimdpmError("--image needs pipelines: presets are networks alone")
    place, pairs = pick_device(device), {}
    for model in models:
        pipeline = load_pipeline(model).to(place)
        shell = shell_of(pipeline)
        if size is not None:
            shell = shell.sized(each_side(lambda side, factor=shell.factor: side * factor, size))  # type: ignore[misc]
        pairs[model] = shell, network_of(pipeline)
    shell = pairs[models[0]][0]
    for network in networks[len(models) :]:
        pairs[network.name] = shell, random_network(network.config, place)
    with Display(None if silent else Console(stderr=True)).task("measuring images", 1, unit="rounds") as task:
        for name, found in image_times(pairs, steps=steps).items():
            values[name]["image"] = found.as_dict()
        task.advance()


def _cells(about: Mapping[str, Any]) -> list[str]:
    macs = [amounts.macs(about[kind]) for kind in ("macs", "macs_all")]
    ratio = [f"{about['ratio']:.2f}"] if "ratio" in about else []
    return [amounts.parameters(about["params"]), f"{about['megabytes']:.1f}", *macs, *ratio]


def _of_calls(about: Mapping[str, Any]) -> list[str]:
    times = [f"{latency['median'] * 1e3:.1f}" for latency in about["seconds"].values()]
    return [*times, *(f"{peak / 1e6:,.1f}" for peak in about["peak_bytes"].values())]


def _of_layers(about: Mapping[str, Any]) -> list[str]:
    return [f"{seconds * 1e3:.1f}" for seconds in about["layer_seconds"].values()]


def _of_image(about: Mapping[str, Any]) -> list[str]:
    image = about["image"]
    parts = (image["condition"], image["steps"] * image["step"], image["decoder"], image["whole"])
    return [f"{seconds:.3f}" for seconds in parts]


def numbers(text: str, option: str, kind: Any) -> list[Any]:
    """Those in a list with commas."""
    try:
        numbers = [kind(word) for word in text.replace(",", " ").split()]
    except ValueError:
        numbers = [0]
    if not all(1 <= number <= 4096 for number in numbers):
        raise SlimdpmError(f"{option} {text}: give numbers from 1 on, with commas between them")
    return numbers

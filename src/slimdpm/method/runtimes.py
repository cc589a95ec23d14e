"""Networks in the runtimes that students are exported for, to be timed there: ONNX Runtime and OpenVINO on a CPU."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from slimdpm.method.group_norm import whole_group_norms
from slimdpm.method.latency import Latency
from slimdpm.method.networks import call, example_inputs
from slimdpm.system.errors import SlimdpmError, first_line
from slimdpm.system.machine import runtime_facts
from slimdpm.system.processes import pick_device
from slimdpm.system.sizes import Size
from slimdpm.wavelet import WaveletGatingDown, WaveletGatingUp

PYTORCH, ONNX, OPENVINO = "pytorch", "onnxruntime", "openvino"
RUNTIMES = {PYTORCH: "PyTorch", ONNX: "ONNX Runtime", OPENVINO: "OpenVINO"}
CPU = torch.device("cpu")
_OPSET = 18
_REST, _BURST = 0.1, 10  # seconds before a turn, and calls in it


def described_runtime(runtime: str) -> str:
    """A runtime with its version.

    Raises:
        SlimdpmError: if it is not installed.
    """
    if runtime == PYTORCH:
        return runtime_facts()
    _imported(runtime)
    return f"{RUNTIMES[runtime]} {version(runtime)}"


def device_of(runtime: str, device: str | None = None) -> torch.device:
    """Where networks run: on a device that is asked for or the best that there is, in other runtimes on the CPU."""
    return pick_device(device) if runtime == PYTORCH else CPU


def exported_call(
    network: nn.Module, runtime: str, *, batch: int = 1, tokens: int = 77, size: Size | None = None
) -> Callable[[], Any]:
    """One forward pass of a network in another runtime, as often as it is called, to an array ``(B, C, H, W)``.

    Args:
        network: a U-Net on a CPU, in evaluation mode.
        runtime: ``"onnxruntime"`` or ``"openvino"``; it gets as many threads as PyTorch has.
        batch, tokens, size: of the input, see `slimdpm.method.networks.example_inputs`.

    Raises:
        SlimdpmError: if the runtime is not installed, or the network cannot be exported.
    """
    package = _imported(runtime)
    inputs = example_inputs(network.config, batch=batch, size=size, tokens=tokens)  # type: ignore[arg-type]
    inputs |= inputs.pop("added_cond_kwargs", {})
    with TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        _export(network, inputs, file)
        run = _opened_onnx(package, file) if runtime == ONNX else _opened_openvino(package, file)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    return lambda: run(arrays)


def exported_latencies(
    calls: Mapping[str, Callable[[], object]], rounds: int, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Latency]:
    """Seconds of each of these calls, see `exported_call`; they take turns.

    Idle threads of ONNX Runtime keep a core busy for a while: those of one session would take it from another that is
    measured next, and make it up to three times slower. So each turn begins with a rest and a call that is not counted.

    Args:
        calls: by name.
        rounds: of each, some of them in a turn.
        clock: see `slimdpm.method.latency.timings`.
    """
    rest = _REST if torch.get_num_threads() > 1 else 0.0
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for first in range(0, rounds, _BURST):
        for name, run in calls.items():
            time.sleep(rest)
            run()
            for _ in range(min(_BURST, rounds - first)):
                start = clock()
                run()
                seconds[name].append(clock() - start)
    return {name: Latency.of(values) for name, values in seconds.items()}


def _export(network: nn.Module, inputs: dict[str, Tensor], file: Path) -> None:
    """Write a graph of these inputs' shapes.

    PyTorch's exporter of scripts needs a tenth of the time, and ONNX Runtime as long for its graph as for that of
    ``slimdpm export``. It loses count of the shapes in wavelet gates.
    """
    gated = any(isinstance(module, (WaveletGatingDown, WaveletGatingUp)) for module in network.modules())
    names, values = list(inputs), tuple(inputs.values())
    with quiet_export(), torch.inference_mode(), whole_group_norms() if gated else nullcontext() as translations:
        try:
            made = torch.onnx.export(
                _Flat(network, names),
                values,
                None if gated else str(file),
                dynamo=gated,
                opset_version=_OPSET,
                input_names=names,
                custom_translation_table=translations,
                verbose=False,
            )
            if made is not None:
                made.save(str(file))
        except Exception as error:  # of many kinds, each of them long
            raise SlimdpmError(f"PyTorch cannot export this network: {first_line(error)}") from error


class _Flat(nn.Module):
    """A network that takes its inputs in order, by these names: the exporter knows no keywords."""

    def __init__(self, network: nn.Module, names: list[str]):
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *values: Tensor) -> Tensor:
        given: dict[str, Any] = dict(zip(self.names, values, strict=True))
        sample, t = given.pop("sample"), given.pop("timestep")
        added = {name: given.pop(name) for name in ("text_embeds", "time_ids") if name in given}
        return call(self.network, sample, t, given | ({"added_cond_kwargs": added} if added else {}))


def _opened_onnx(package: Any, file: Path) -> Callable[[dict[str, Any]], Any]:
    options = package.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    session = package.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda arrays: session.run(None, arrays)[0]


def _opened_openvino(package: Any, file: Path) -> Callable[[dict[str, Any]], Any]:
    core = package.Core()
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()})
    compiled = core.compile_model(str(file), "CPU")
    return lambda arrays: compiled(arrays)[0]


def _imported(runtime: str) -> Any:
    """The runtime's package; what exports to it must be there, too."""
    extra = "openvino" if runtime == OPENVINO else "export"
    try:
        package = import_module(runtime)
    except ImportError:
        raise SlimdpmError(f"{RUNTIMES[runtime]} is not installed: pip install 'slimdpm[{extra}]'") from None
    for name in ("onnx", "onnxscript"):
        if find_spec(name) is None:
            raise SlimdpmError(f"{name} is not installed, to export networks: pip install 'slimdpm[{extra}]'")
    return package


@contextmanager
def quiet_export() -> Iterator[None]:
    """Without the remarks of PyTorch's exporters."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

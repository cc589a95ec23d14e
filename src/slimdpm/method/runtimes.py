"""Networks in the runtimes that students are exported for, to be timed there: ONNX Runtime and OpenVINO on a CPU."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from slimdpm.method.latency import Latency, timings
from slimdpm.method.networks import call, example_inputs
from slimdpm.system.errors import SlimdpmError, first_line
from slimdpm.system.machine import runtime_facts
from slimdpm.system.sizes import Size
from slimdpm.wavelet import WaveletGatingDown, WaveletGatingUp

PYTORCH, ONNX, OPENVINO = "pytorch", "onnxruntime", "openvino"
RUNTIMES = {PYTORCH: "PyTorch", ONNX: "ONNX Runtime", OPENVINO: "OpenVINO"}
CPU = torch.device("cpu")
_OPSET = 18


def described_runtime(runtime: str) -> str:
    """A runtime with its version.

    Raises:
        SlimdpmError: if it is not installed.
    """
    if runtime == PYTORCH:
        return runtime_facts()
    _imported(runtime)
    return f"{RUNTIMES[runtime]} {version(runtime)}"


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
    inputs = _flat(example_inputs(network.config, batch=batch, size=size, tokens=tokens))  # type: ignore[arg-type]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        _export(network, inputs, file)
        run = _opened_onnx(package, file) if runtime == ONNX else _opened_openvino(package, file)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    return lambda: run(arrays)


def exported_latencies(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int | None = None,
    seconds: float = 6.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Latency]:
    """Seconds of each of these calls, see `exported_call`; they take turns.

    Args:
        calls: by name.
        rounds: of each; by default as many as make up about `seconds`, 20 at most and 1 at least.
        seconds: of measuring.
        clock: see `slimdpm.method.latency.timings`.
    """
    if rounds is None:
        first = timings(calls, CPU, rounds=1, clock=clock)
        rounds = min(20, int(seconds / max(sum(latency.median for latency in first.values()), 1e-9)))
        if rounds <= 1:
            return first
    return timings(calls, CPU, rounds=rounds, clock=clock)


def _export(network: nn.Module, inputs: dict[str, Tensor], file: Path) -> None:
    """Write a graph of these inputs' shapes.

    PyTorch's exporter of scripts needs a tenth of the time, and ONNX Runtime as long for its graph as for that of
    ``slimdpm export``. It loses count of the shapes in wavelet gates.
    """
    gated = any(isinstance(module, (WaveletGatingDown, WaveletGatingUp)) for module in network.modules())
    names, values = list(inputs), tuple(inputs.values())
    with quiet_export(), torch.inference_mode():
        try:
            made = torch.onnx.export(
                _Flat(network, names),
                values,
                None if gated else str(file),
                dynamo=gated,
                opset_version=_OPSET,
                input_names=names,
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


def _flat(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inputs without the dictionary that is one of them."""
    return {name: v for name, v in inputs.items() if not isinstance(v, dict)} | inputs.get("added_cond_kwargs", {})


def _opened_onnx(package: Any, file: Path) -> Callable[[dict[str, Any]], Any]:
    options = package.SessionOptions()
    options.log_severity_level = 4
    if _one_pool(package):
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.force_spinning_stop", "1")
    session = package.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda arrays: session.run(None, arrays)[0]


@cache
def _one_pool(package: Any) -> bool:
    """Whether all sessions have the same threads, as many as PyTorch has now.

    Threads of ONNX Runtime that have nothing to do keep a core busy for a while: those of one session would take it
    from another that is measured next, and make it up to three times slower.
    """
    try:
        package.set_global_thread_pool_sizes(torch.get_num_threads(), 1)
    except (AttributeError, RuntimeError):  # an older release, or sessions have such threads already
        return False
    return True


def _opened_openvino(package: Any, file: Path) -> Callable[[dict[str, Any]], Any]:
    core = package.Core()
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()})
    compiled = core.compile_model(str(file), "CPU")
    return lambda arrays: compiled(arrays)[0]


def _imported(runtime: str) -> Any:
    try:
        if runtime == ONNX:
            import onnxruntime

            return onnxruntime
        import openvino

        return openvino
    except ImportError:
        extra = "openvino" if runtime == OPENVINO else "onnx"
        raise SlimdpmError(f"{RUNTIMES[runtime]} is not installed: pip install 'slimdpm[{extra}]'") from None


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

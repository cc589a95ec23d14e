"""Smaller weights in an ONNX file, computed with in float32 all the same.

Half precision and eight bits are questions of size here: on a CPU neither is faster. A weight is kept as float16, or as
int8 with a scale for each output channel, and a ``Cast`` (and ``Mul``) turns it back; ONNX Runtime folds both when it
loads the file, so that a call costs what it cost before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

Weights = Literal["float32", "float16", "int8"]
PROTOBUF = 1.9e9  # bytes that a file of ONNX holds at most; weights that have no room lie beside it
_SMALL = 1024  # numbers: smaller tensors (norms, biases) stay as they are


def shrink(file: Path, weights: Weights) -> None:
    """Rewrite an ONNX file with its large weights in another type.

    Args:
        file: is replaced.
        weights: ``"int8"`` rounds each output channel to 255 levels; the first and the last convolution, which see
            and make the sample, keep float16.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    if weights == "float32":
        return
    model = onnx.load(file)
    graph = model.graph
    kept, nodes, ends = [], [], _ends(graph)
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _SMALL:
            kept.append(tensor)
            continue
        name, values = tensor.name, numpy_helper.to_array(tensor)
        if weights == "float16" or values.ndim < 2 or name in ends:
            kept.append(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
            nodes.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
            continue
        rounded, scale = _rounded(values)
        kept += [numpy_helper.from_array(rounded, f"{name}.int8"), numpy_helper.from_array(scale, f"{name}.scale")]
        nodes.append(helper.make_node("Cast", [f"{name}.int8"], [f"{name}.whole"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [f"{name}.whole", f"{name}.scale"], [name]))
    rest = list(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend([*nodes, *rest])
    for beside in file.parent.glob(f"{file.name}.*"):  # weights that had no room in the file: they are in it now
        beside.unlink()
    size = sum(len(tensor.raw_data) for tensor in graph.initializer)
    onnx.save(model, file, save_as_external_data=size > PROTOBUF, location=f"{file.name}.data")


def _ends(graph: object) -> set[str]:
    """Weights of the first and the last convolution."""
    convolutions = [node for node in graph.node if node.op_type == "Conv"]  # type: ignore[attr-defined]
    return {node.input[1] for node in (convolutions[0], convolutions[-1])} if convolutions else set()


def _rounded(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers from −127 to 127, and what to multiply them by: one factor for each first index."""
    scale = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True) / 127
    scale[scale == 0] = 1
    return np.rint(values / scale).astype(np.int8), scale.astype(np.float32)

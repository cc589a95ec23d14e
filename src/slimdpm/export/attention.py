"""Attention of an exported graph as one operator of ONNX Runtime, which keeps no matrix of all pairs of tokens.

ONNX's own operators write that matrix, scale it, take its softmax and read it again: half as long again on a CPU, and
memory that grows with the square of the pixels. ``com.microsoft.MultiHeadAttention`` goes through it in blocks.
"""

from __future__ import annotations

from typing import Any

DOMAIN = "com.microsoft"
_HEADS_APART, _TOKENS_LAST = (0, 2, 1, 3), (0, 2, 1)  # permutations


def fuse_attention(model: Any) -> int:
    """Replace each attention without a mask in a graph of PyTorch's exporter.

    Args:
        model: an `onnx_ir.Model`; it is changed.

    Returns:
        how many there were.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass  # here: of an extra

    fused = sum(_fuse(model.graph, node) for node in list(model.graph) if node.op_type == "Softmax")
    if fused:
        model.opset_imports[DOMAIN] = 1
        RemoveUnusedNodesPass()(model)
    return fused


def _fuse(graph: Any, softmax: Any) -> bool:
    """Whether a softmax belongs to an attention, which then is one operator."""
    pairs, after = _maker(softmax.inputs[0], "MatMul"), _only_user(softmax.outputs[0], "MatMul")
    if pairs is None or after is None or after.inputs[0] is not softmax.outputs[0]:
        return False
    query, query_scale = _scaled(pairs.inputs[0])
    key, key_scale = _scaled(pairs.inputs[1])
    query, value = _before(query, "Transpose", _HEADS_APART), _before(after.inputs[1], "Transpose", _HEADS_APART)
    # PyTorch turns keys by way of three dimensions: heads and batch are one meanwhile.
    key = _before(_before(_before(key, "Reshape"), "Transpose", _TOKENS_LAST), "Reshape")
    key = _before(key, "Transpose", _HEADS_APART)
    turned = _only_user(after.outputs[0], "Transpose", _HEADS_APART)
    joined = _only_user(turned.outputs[0], "Reshape") if turned is not None else None
    if joined is None or any(view is None or _heads(view) is None for view in (query, key, value)):
        return False
    flat = [_before(view, "Reshape") for view in (query, key, value)]  # (B, tokens, heads * size)
    if any(tokens is None or tokens.shape is None or len(tokens.shape) != 3 for tokens in flat):
        return False
    import onnx_ir

    attributes = {"num_heads": _heads(query), "scale": query_scale * key_scale}
    made = onnx_ir.node("MultiHeadAttention", flat, attributes, domain=DOMAIN, num_outputs=1)
    made.outputs[0].name = f"{joined.outputs[0].name}_fused"
    made.outputs[0].shape, made.outputs[0].type = joined.outputs[0].shape, joined.outputs[0].type
    graph.insert_before(joined, made)
    onnx_ir.convenience.replace_all_uses_with(joined.outputs[0], made.outputs[0])
    return True


def _heads(view: Any) -> int | None:
    """Of a value ``(B, tokens, heads, size)``."""
    heads = view.shape[2] if view.shape is not None and len(view.shape) == 4 else None
    return heads if isinstance(heads, int) else None


def _scaled(value: Any) -> tuple[Any, float]:
    """What a value is before it is multiplied by a constant, and this constant."""
    node = _maker(value, "Mul")
    if node is None:
        return value, 1.0
    number = node.inputs[1].const_value
    return (value, 1.0) if number is None or number.size != 1 else (node.inputs[0], float(number.numpy().item()))


def _before(value: Any, kind: str, permutation: tuple[int, ...] | None = None) -> Any:
    """The input of the node that makes a value, if it is of this kind."""
    node = _maker(value, kind, permutation) if value is not None else None
    return None if node is None else node.inputs[0]


def _maker(value: Any, kind: str, permutation: tuple[int, ...] | None = None) -> Any:
    return _of_kind(value.producer(), kind, permutation)


def _only_user(value: Any, kind: str, permutation: tuple[int, ...] | None = None) -> Any:
    """The one node that reads a value, if it is of this kind."""
    users = [use.node for use in value.uses()]
    return _of_kind(users[0], kind, permutation) if len(users) == 1 else None


def _of_kind(node: Any, kind: str, permutation: tuple[int, ...] | None) -> Any:
    if node is None or node.op_type != kind:
        return None
    return node if permutation is None or tuple(node.attributes["perm"].as_ints()) == permutation else None

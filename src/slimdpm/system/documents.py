"""YAML and JSON that others wrote: read as data, within bounds, and any fault of theirs is one line."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import yaml

from slimdpm.system.errors import SlimdpmError, first_line

LARGEST = 64 * 2**20  # bytes of a file that is read whole
_YAML = 2**20  # bytes of a YAML: its parser takes a second for each of them
_NODES = 20_000  # of a YAML, an alias counted as often as it stands there
_DEPTH = 40
_DIGITS = 32  # of a whole number; tokenizers without a longest text write 10³⁰


@contextmanager
def regular(file: Path, name: str = "") -> Iterator[BufferedReader]:
    """A regular file, open for reading: no pipe or device, which might never end.

    Args:
        name: what a message calls it, by default its path.

    Raises:
        SlimdpmError: if it is missing, something else or not readable.
    """
    name = name or str(file)
    try:
        with open(file, "rb", opener=without_waiting) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise SlimdpmError(f"{name} is no regular file")
            yield stream
    except FileNotFoundError:
        raise SlimdpmError(f"{name} does not exist") from None
    except IsADirectoryError:
        raise SlimdpmError(f"{name} is a folder") from None
    except (OSError, ValueError) as error:  # a name with a zero in it is a ValueError
        raise SlimdpmError(f"{name} cannot be read: {first_line(error)}") from None


def read_bytes(file: Path, most: int = LARGEST, name: str = "") -> bytes:
    """A file, whole, of at most so many bytes. Raises `SlimdpmError` as `regular`, or if it is larger."""
    name = name or str(file)
    with regular(file, name) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise SlimdpmError(f"{name} is too large: {size:,} bytes, {most:,} are read at most")
        return stream.read()


def read_text(file: Path, most: int = LARGEST, name: str = "") -> str:
    """`read_bytes` as UTF-8, with or without its mark. Raises `SlimdpmError` as `read_bytes`, or if it is no UTF-8."""
    return decoded(read_bytes(file, most, name), name or str(file))


def decoded(data: bytes, name: str) -> str:
    """Bytes as text. Raises `SlimdpmError` if they are not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SlimdpmError(f"{name}: line {line} is not valid UTF-8; save it as UTF-8") from None


def read_json(file: Path, most: int = LARGEST) -> Any:
    """The value in a JSON file. Raises `SlimdpmError` as `read_text` and `parse_json`."""
    return parse_json(read_text(file, most), str(file))


def parse_json(text: str, name: str) -> Any:
    """The value of a JSON text.

    Raises:
        SlimdpmError: if it is no JSON, is nested too deeply, or a key stands twice in one object.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_int=_whole, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise SlimdpmError(f"{name} cannot be read as JSON: {first_line(error)}") from None


def read_yaml(file: Path, name: str = "") -> Any:
    """The value in a YAML file. Raises `SlimdpmError` as `read_text` and `parse_yaml`."""
    name = name or str(file)
    return parse_yaml(read_text(file, _YAML, name), name)


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML text: plain data, no objects.

    Raises:
        SlimdpmError: if it is no YAML, asks for more than data, a key stands twice in one mapping, or it is nested or
            repeated (by aliases) beyond reason.
    """
    try:
        value = yaml.load(text, _Loader)
        _count(value, 0, 0)
    except yaml.constructor.ConstructorError as error:
        raise SlimdpmError(
            f"{name} is no valid YAML for us, it is refused: it asks for more than data ({error.problem})"
        ) from None
    except yaml.YAMLError as error:
        raise SlimdpmError(f"{name} is no valid YAML{_where(error)}") from None
    except (ValueError, TypeError, RecursionError, AttributeError, LookupError) as error:
        # The constructors of numbers, dates and booleans raise what they like.
        raise SlimdpmError(f"{name} is no valid YAML: {first_line(error)}") from None
    return value


class _Loader(yaml.SafeLoader):
    """PyYAML's safe one, without its silence about a key that stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        if isinstance(node, yaml.MappingNode):
            seen: list[Any] = []
            for key_node, _ in node.value:
                key = None if key_node.tag.endswith(":merge") else self.construct_object(key_node, deep=True)
                if key is not None and key in seen:
                    raise ValueError(f"the key {key} stands there twice (line {key_node.start_mark.line + 1})")
                seen.append(key)
        return super().construct_mapping(node, deep=deep)


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f" (line {mark.line + 1})" if mark else ""


def _count(value: Any, nodes: int, depth: int) -> int:
    """How many values there are so far, those of an alias each time."""
    nodes += 1
    if nodes > _NODES or depth > _DEPTH:
        raise ValueError("it repeats or nests its values beyond reason")
    if isinstance(value, int) and value.bit_length() > 3.33 * _DIGITS:
        raise ValueError(f"a whole number of more than {_DIGITS} digits")
    parts = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
    for part in parts if isinstance(parts, (list, tuple, set)) else ():
        nodes = _count(part, nodes, depth + 1)
    return nodes


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)} stands there twice")
    return values


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a whole number of more than {_DIGITS} digits")
    return int(digits)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def without_waiting(path: str, flags: int) -> int:
    """For ``open(..., opener=...)``: a pipe is then empty, else opening it would wait for its writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))

"""Heights and widths, in the form of diffusers' ``sample_size``: a number for a square, else ``(height, width)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from slimdpm.system.errors import SlimdpmError

Size = int | tuple[int, int]
SMALLEST, LARGEST = 4, 2**14  # pixels of an image's side


def size_of(value: Any) -> Size:
    """A size as recipes, configs and the command line write it: 48, ``"48"``, ``"48x64"`` or ``[48, 64]``.

    Raises:
        ValueError: if it is no size, or beyond all bounds.
    """
    parts = value.lower().replace("×", "x").split("x") if isinstance(value, str) else value
    parts = list(parts) if isinstance(parts, (list, tuple)) else [parts]
    numbers: list[Any] = [int(p) if isinstance(p, str) and p.strip().isdecimal() and len(p) < 9 else p for p in parts]
    if len(numbers) not in (1, 2) or not all(type(n) is int and 0 < n <= LARGEST for n in numbers):
        raise ValueError(f"a size is a number of pixels or height x width, as 48 or 48x64, at most {LARGEST} a side")
    return numbers[0] if len(set(numbers)) == 1 else (numbers[0], numbers[1])


def sample_size(config: Mapping[str, Any]) -> Size:
    """A network's own, of its config. Raises `SlimdpmError` if it has none."""
    try:
        return size_of(config.get("sample_size"))
    except ValueError as error:
        raise SlimdpmError(f"the network's config has the sample_size {config.get('sample_size')}: {error}") from None


def sides(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def each_side(change: Callable[[int], int], size: Size) -> Size:
    """The size whose sides are what `change` makes of this one's."""
    height, width = map(change, sides(size))
    return height if height == width else (height, width)


def nearest(size: Size, step: int) -> list[Size]:
    """The next sizes below and above whose sides are multiples of a step; the size itself, if its own are."""
    lower = each_side(lambda side: max(side // step, 1) * step, size)
    return list(dict.fromkeys([lower, each_side(lambda side: -(-side // step) * step, size)]))


def described(size: Size, by: str = "x") -> str:
    """``48x64``; a square has two sides, too."""
    return by.join(map(str, sides(size)))


def briefly(size: Size) -> str:
    """As the command line takes it: ``48``, ``48x64``."""
    return str(size) if isinstance(size, int) else described(size)

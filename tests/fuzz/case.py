"""What a kind of malformed input is: a function from a random generator and a folder to a command and its outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Base


@dataclass
class Outcome:
    """What came of a command: its exit code, what it printed, the folder in which it ran."""

    code: int
    out: str
    err: str
    folder: Path


@dataclass
class Case:
    """One input.

    Attributes:
        argv: the words of the command.
        expect: ``"refused"`` (exit code 2, one line), ``"works"``, or ``"either"``.
        check: of the outcome; raises `AssertionError` for what is silently wrong.
        call: a function in place of the command, for what only Python hands over.
        note: what was done to the input, for the list of failures.
    """

    argv: list[Any] = field(default_factory=list)
    expect: str = "either"
    check: Callable[[Outcome], None] | None = None
    call: Callable[[], Any] | None = None
    note: str = ""


Kind = Callable[[Random, Path, "Base"], Case]
KINDS: dict[str, tuple[Kind, int, bool]] = {}


def kind(weight: int = 10, *, slow: bool = False) -> Callable[[Kind], Kind]:
    """Registers a kind under its function's name.

    Args:
        weight: of 1,500 inputs about so many are of it.
        slow: it takes a second or more, or the runs that `base` makes.
    """

    def register(function: Kind) -> Kind:
        KINDS[function.__name__] = (function, weight, slow)
        return function

    return register


def make(name: str, rng: Random, folder: Path, base: Base) -> Case:
    return KINDS[name][0](rng, folder, base)


def drawn(seed: int, index: int, quick: bool = False) -> tuple[str, Random]:
    """The kind of an input by its number, and the generator that makes it; the same on every machine."""
    rng = Random(f"{seed}-{index}")
    names = [name for name in sorted(KINDS) if not (quick and KINDS[name][2])]
    return rng.choices(names, [KINDS[name][1] for name in names])[0], rng

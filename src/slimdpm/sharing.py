"""Work that several processes, of one launch or strangers to each other, do between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

Piece = TypeVar("Piece")


def share(
    pieces: Iterable[Piece], lock: Callable[[Piece], Path], do: Callable[[Piece], None], *, wait: bool = True
) -> None:
    """Do the pieces that no other process is at; then wait for the others, and do what they left undone.

    Args:
        pieces: of the work.
        lock: the file that is locked while a piece is worked at.
        do: does a piece, or finds that it is done.
        wait: for the pieces of other processes; else they are left to them.
    """
    elsewhere = []
    for piece in pieces:
        try:
            with FileLock(lock(piece), timeout=0):
                do(piece)
        except Timeout:
            elsewhere.append(piece)
    for piece in elsewhere if wait else ():
        with FileLock(lock(piece)):
            do(piece)

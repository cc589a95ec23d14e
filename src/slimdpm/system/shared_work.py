"""Work that several processes, of one launch or strangers to each other, do between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import AcquireReturnProxy, FileLock, Timeout

from slimdpm.system.errors import SlimdpmError
from slimdpm.system.files import check_new, explained

Piece = TypeVar("Piece")


def claim(folder: Path) -> AcquireReturnProxy:
    """Make a folder and hold it against other processes, until the answer's context ends or its lock is released.

    Raises:
        SlimdpmError: if another process holds it, or it cannot be made.
    """
    if (held := _hold(folder / ".lock", 0)) is None:
        raise SlimdpmError(f"another process is working in {folder}")
    return held


def _hold(lock: Path, seconds: float = -1) -> AcquireReturnProxy | None:
    """A lock, waited for so long, by default for ever; None if another process has it still."""
    with explained(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            return FileLock(lock).acquire(seconds)
        except Timeout:
            return None


@contextmanager
def claim_new(folder: Path) -> Iterator[None]:
    """Hold the name of a folder that does not exist yet against other processes, until the context ends.

    Raises:
        SlimdpmError: if it exists, another process holds it, or it cannot be made.
    """
    check_new(folder)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise SlimdpmError(f"another process is writing {folder}") from None
    try:
        check_new(folder)  # again: another process may have been faster
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def check_folder(folder: Path, what: str, *signs: str) -> None:
    """Raise a `SlimdpmError` for a folder of something else than `what`, which leaves one of these signs (patterns)."""
    if folder.exists() and not folder.is_dir():
        raise SlimdpmError(f"{folder} is a file; give a folder for {what}")
    with explained(folder):
        others = folder.is_dir() and any(path.name not in (".lock", "cache") for path in folder.iterdir())
    if others and not any(any(folder.glob(sign)) for sign in signs):
        raise SlimdpmError(f"{folder} is not empty and holds no {what}; choose another folder")


def share(
    pieces: Iterable[Piece], lock: Callable[[Piece], Path], do: Callable[[Piece], None], *, wait: bool = True
) -> None:
    """Do the pieces that no other process is at; then wait for the others, and do what they left undone.

    Args:
        lock: the file that is locked while a piece is worked at.
        do: does a piece, or finds that it is done.
        wait: for the pieces of other processes; else they are left to them.
    """
    elsewhere = []
    for piece in pieces:
        if (held := _hold(lock(piece), 0)) is None:
            elsewhere.append(piece)
            continue
        with held:
            do(piece)
    for piece in elsewhere if wait else ():
        if held := _hold(lock(piece)):
            with held:
                do(piece)

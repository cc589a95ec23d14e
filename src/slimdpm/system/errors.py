"""The one exception for a user's mistake: its text is the whole message, and the command line exits with 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from slimdpm.system.text import one_line


class SlimdpmError(Exception):
    """Something that the user can mend. The message says what is wrong and what to do, in one line."""

    def __init__(self, message: object):
        super().__init__(one_line(message))


def first_line(error: BaseException) -> str:
    """The reason that an exception of another library gives, in short."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[0], 200) if lines else type(error).__name__


@contextmanager
def blamed(complaint: str) -> Iterator[None]:
    """Whatever another library raises in this block is the input's fault.

    Args:
        complaint: how the message begins, for example ``"FILE cannot be loaded"``.

    Raises:
        SlimdpmError: the complaint and the library's reason. A `SlimdpmError` from within passes as it is.
    """
    try:
        yield
    except SlimdpmError:
        raise
    except Exception as error:
        raise SlimdpmError(f"{complaint}: {first_line(error)}") from error

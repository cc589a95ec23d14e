"""Text that others wrote (file names, keys, class names, reasons) made fit for a terminal and for a log."""

from __future__ import annotations

MESSAGE = 500  # characters of a message at most


def one_line(text: object, most: int = MESSAGE) -> str:
    """The text as one line of printable characters, its middle left out if it is longer than `most`.

    Line breaks become spaces, and what a terminal might obey (escapes, marks that turn the direction of writing) or
    could not encode is spelled out: ``\\x1b``.
    """
    whole = str(text).strip()
    if len(whole) > most:
        half = (most - 5) // 2
        whole = f"{whole[:half]} ... {whole[-half:]}"
    line = "".join(c if c.isprintable() else " " if c.isspace() else c.encode("unicode_escape").decode() for c in whole)
    return line if len(line) <= most else one_line(line, most)

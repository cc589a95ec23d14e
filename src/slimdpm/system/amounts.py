"""Amounts for people, each kind in one form."""

from __future__ import annotations


def parameters(count: float) -> str:
    """``21.17 M``."""
    return f"{count / 1e6:.2f} M"


def macs(count: float) -> str:
    """``6.688 G``, ``61.4 M``."""
    return f"{count / 1e9:.3f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"


def storage(nbytes: float) -> str:
    """``10.1 GB``, ``0.6 MB``."""
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """``2 h 05 min``, ``9 min 27 s``, ``5 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"

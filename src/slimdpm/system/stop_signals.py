"""Stopping on request: Ctrl-C and SIGTERM end a run after a checkpoint, not in the middle of a step."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopped(Exception):
    """The run was asked to stop and its state is saved. `signal` is the number of the signal that asked."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped after step {step}; the same command resumes")
        self.signal, self.step = number, step


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects Ctrl-C and SIGTERM instead of dying of them; the second one does interrupt."""
    received: list[int] = []

    def handler(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return
    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def interruptible() -> list[int]:
    """For a command: SIGTERM interrupts it as Ctrl-C does. Returns where the numbers of those that come are put."""
    received: list[int] = []

    def handler(number: int, frame: Any) -> None:
        received.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
    return received


@contextmanager
def hearing(patience: float = 2.0) -> Iterator[None]:
    """While a library waits and lets no handler run: a signal that none has heard in so many seconds ends the process.

    So waits the meeting of a launch's processes, if one of them is stopped before it comes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    heard = threading.Event()

    def listen() -> None:
        number = os.read(reader, 1)
        if number and not heard.wait(patience):
            print("stopped", file=sys.stderr, flush=True)
            os._exit(128 + number[0])

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        heard.set()
        signal.set_wakeup_fd(before)
        os.close(writer)
        listener.join()
        os.close(reader)


def leave_to_parent(worker: int) -> None:
    """For a data loader's worker: a Ctrl-C reaches it too, but its parent decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's way to end it

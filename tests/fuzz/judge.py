"""What counts as a fault of a command that was given a malformed input."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from .case import Case, Outcome

LONGEST = 500  # characters of a message
CANARY = "CANARY"  # a file that whatever runs leaves behind
_PROGRAMS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect", "pty.spawn"}
_CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink", "shutil.rmtree"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Listens to the interpreter's own audit: programs started, and files changed outside the folder of the case."""

    def __init__(self, folder: Path):
        self.seen: list[str] = []
        self.allowed = (str(folder.resolve()), "/dev/", "/proc/self")
        self.on = False
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event in _PROGRAMS:
            self._note(f"{event} {arguments[:2]!r}")
        elif event in _CHANGES and isinstance(arguments[0], (str, os.PathLike)):
            if not any(isinstance(value, int) and value >= 0 for value in arguments[1:] if event != "os.chmod"):
                self._path(event, arguments[0])
        elif event == "open" and isinstance(arguments[0], (str, os.PathLike)) and arguments[2] & _WRITING:
            self._path(event, arguments[0])

    def _path(self, event: str, path: Any) -> None:
        real = os.path.realpath(path)
        if event == "shutil.rmtree" and not os.path.lexists(real):  # removes nothing
            return
        if not real.startswith(self.allowed):
            self._note(f"{event} {real}")

    def _note(self, what: str) -> None:
        if len(self.seen) < 5:
            self.seen.append(what[:300])


def executed(folder: Path, watch: Watch) -> list[str]:
    """What of the input was run, or reached out of its folder."""
    found = list(watch.seen)
    found += [f"canary {path.name}" for path in folder.rglob(f"{CANARY}*")]
    here = str(folder.resolve()) + os.sep
    found += [f"imported {n}" for n, m in list(sys.modules.items()) if str(getattr(m, "__file__", "")).startswith(here)]
    return found


def fault(case: Case, outcome: Outcome) -> str | None:
    """The fault of an outcome, None if it is as it should be: first word the sort, then what."""
    errors = outcome.err.splitlines()
    if outcome.code not in (0, 2):
        return f"traceback: code {outcome.code}: {errors[-1] if errors else ''}"
    if outcome.code == 0 and outcome.err:
        return f"message: on stderr of a success: {outcome.err[:300]!r}"
    if outcome.code == 2 and not errors and outcome.out.lstrip().startswith("Usage:"):
        return None  # no command is named: the help says which there are
    if outcome.code == 2:
        if len(errors) != 1:
            return f"message: {len(errors)} lines on stderr: {outcome.err[:600]!r}"
        line = errors[0]
        if not line.startswith("error: ") or len(line) > LONGEST or not line.isprintable():
            return f"message: {line[:600]!r} ({len(line)} characters)"
    if not all(c.isprintable() or c == "\n" for c in outcome.out):
        odd = next(line for line in outcome.out.split("\n") if not line.isprintable())
        return f"message: raw on stdout: {odd[:300]!r}"
    if outcome.code == 0 and case.expect == "refused":
        return "wrong: accepted, and should be refused"
    if outcome.code == 2 and case.expect == "works":
        return f"refused: what is right: {errors[0]}"
    if case.check is not None:
        try:
            case.check(outcome)
        except AssertionError as error:
            return f"wrong: {error}"
    return None

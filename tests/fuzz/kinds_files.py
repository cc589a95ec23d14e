"""Where things are written: folders of others, files, devices, names that no system takes."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from random import Random
from typing import Any

from .base import Base
from .case import Case, Outcome, kind
from .kinds_words import _whole
from .mutate import copied


def _state(folder: Path) -> dict[str, bytes | None]:
    return {
        str(f.relative_to(folder)): f.read_bytes() if f.is_file() else None
        for f in sorted(folder.rglob("*"))
        if f.name != ".lock"
    }


@kind(30, slow=True)
def outputs_of_others(rng: Random, folder: Path, base: Base) -> Case:
    """An output folder that is somebody's: data, a teacher, a run, samples. It stays as it was."""
    what = rng.choice(
        ["images", "classes", "labelled", "run", "samples", "evaluation", "teachers/pixel", "tokenizer", "originals"]
    )
    place = copied(base.folder / what, folder / "out")
    command = rng.choice(["slim", "train", "sample", "import", "evaluate", "analyze"])
    words = _whole(command, folder, base)
    words = [w for w in words if w != "--dry-run"]
    before = _state(place)

    def check(outcome: Outcome) -> None:
        after = _state(place)
        changed = [name for name, value in before.items() if name not in after or after[name] != value]
        assert not changed, f"changed there: {', '.join(changed[:5])}"
        assert outcome.code == 0 or before.keys() == after.keys(), (
            f"new there: {sorted(after.keys() - before.keys())[:5]}"
        )

    if (command, what) == (
        "evaluate",
        "evaluation",
    ):  # evaluations share what they keep; the results are the last one's
        return Case(words, "works", note=f"{command} into {what}")
    return Case(words, "refused", check, note=f"{command} into {what}")


@kind(25, slow=True)
def outputs(rng: Random, folder: Path, base: Base) -> Case:
    """An output that is no folder, or cannot be one."""
    (folder / "file").write_text("x")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("/nowhere/at/all")
    os.mkfifo(folder / "pipe")
    place = rng.choice(
        [
            "file",
            "file/x",
            "loop",
            "loop/x",
            "dangling",
            "pipe",
            "/dev/null",
            "/dev/full",
            "/dev/null/x",
            "/proc/x",
            "n" * 300,
            "a/" * 3000,
            "\udcff\udcfe",
            "\x1b[31m",
            "a\nb",
            "/sys/x",
        ]
    )
    words = _whole(rng.choice(["slim", "train", "sample", "import", "evaluate", "analyze"]), folder, base)
    words = [w for w in words if w != "--dry-run"]
    words[words.index("-o") + 1] = place
    return Case(
        words,
        "either" if place in ("\udcff\udcfe", "\x1b[31m", "a\nb", "dangling") else "refused",
        note=f"{words[0]} {place!r}"[:100],
    )


@kind(15, slow=True)
def unreadable(rng: Random, folder: Path, base: Base) -> Case:
    """Files and folders that the user may not read or write, as somebody who is not root."""
    source = {"slim": "images", "sample": "class", "evaluate": "images", "profile": "net.json"}
    command = rng.choice(sorted(source))
    words = _whole(command, folder, base)
    if command == "profile":
        (folder / "net.json").write_bytes((base.folder / "net.json").read_bytes())
        target = folder / "net.json"
        words = ["profile", target]
    else:
        old = base.teacher("class") if command == "sample" else base.images
        new = copied(old, folder / "given")
        words = [new if w == old else w for w in words]
        target = rng.choice([new, *new.rglob("*")])
    how = rng.choice([0o000, 0o000, 0o111, 0o444])
    os.chmod(target, how)
    if rng.random() < 0.3:
        os.chmod(folder, 0o555)

    def call() -> Any:
        os.setgid(65534)
        os.setuid(65534)
        from slimdpm.cli import main as cli

        return cli.original_app([str(w) for w in words], standalone_mode=False)  # type: ignore[attr-defined]

    for place in (folder.parent, folder.parent / "tmp"):
        os.chmod(place, 0o777)
    if folder.stat().st_mode & 0o222:
        os.chmod(folder, folder.stat().st_mode | 0o022)
    return Case(words, call=call if os.getuid() == 0 else None, note=f"{command} {target.name} {how:o}")


@kind(12, slow=True)
def few_handles(rng: Random, folder: Path, base: Base) -> Case:
    """Few file handles, or little space: a limit on the size of files."""
    words = _whole(rng.choice(["slim", "sample", "import", "evaluate", "profile"]), folder, base)
    words = [w for w in words if w != "--dry-run"]
    handles, size = (
        (rng.choice([12, 16, 20, 30]), None) if rng.random() < 0.5 else (None, rng.choice([0, 100, 5000, 50_000]))
    )

    def call() -> Any:
        import signal

        from slimdpm.cli import main as cli

        if handles is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (handles, handles))
        else:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size or 0, resource.RLIM_INFINITY))
        try:
            return cli.original_app([str(w) for w in words], standalone_mode=False)  # type: ignore[attr-defined]
        finally:
            if size is not None:  # our own judgement is a file, too
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            else:
                resource.setrlimit(resource.RLIMIT_NOFILE, (handles or 0, handles or 0))

    return Case(words, call=call, note=f"{words[0]} handles {handles} size {size}")

"""Each case in a process of its own, forked from one that has imported everything already."""

from __future__ import annotations

import functools
import gc
import io
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .base import QUICK, Base, build, command, sets
from .case import Case, Outcome, drawn, make
from .judge import Watch, executed, fault

SECONDS = 60.0
WHOLE = 4  # one input of so many is not spared anything
MEMORY = 3 * 2**30  # bytes
_ADDRESSES = 12 * 2**30  # of address space beyond the parent's: what asks for more is told so by the system


@dataclass
class Result:
    """How one input went; `fault` is None if as it should."""

    index: int
    kind: str
    fault: str | None
    argv: list[str]
    note: str
    err: str
    code: int | None
    seconds: float
    memory: float  # GB, at the most
    trace: str = ""


def warm() -> None:
    """Import what the commands import, so that no child has to."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import matplotlib
    import torch

    matplotlib.use("Agg")
    torch.set_num_threads(1)
    import diffusers.loaders.single_file
    import diffusers.pipelines.deprecated
    import diffusers.pipelines.stable_diffusion
    import diffusers.pipelines.stable_diffusion_xl
    import matplotlib.pyplot
    import onnxruntime
    import scipy.linalg
    import torch.optim.adamw
    import transformers.models.clip
    import typer

    import slimdpm.analysis.analyze
    import slimdpm.cli.main
    import slimdpm.metrics.evaluate
    import slimdpm.originals
    import slimdpm.pipelines.sample_files
    import slimdpm.report.page
    import slimdpm.training.plan

    for family in (diffusers, transformers):
        for name in ("CLIPTextModel", "CLIPTokenizer", "UNet2DModel", "VQModel", "DDIMScheduler", "DDPMPipeline"):
            getattr(family, name, None)
    typer.main.get_command = functools.cache(typer.main.get_command)  # of all commands, for each call anew
    del matplotlib, onnxruntime, scipy, slimdpm
    from . import kinds

    del kinds


def rehearse(base: Base, folder: Path) -> None:
    """Run what is whole once here: what libraries load and remember at first use is then there for all children."""
    shutil.rmtree(folder, ignore_errors=True)
    commands = [
        [*base.run_words(folder / "dry"), "--dry-run"],
        base.run_words(folder / "run"),
        base.evaluate_words(folder / "evaluation"),
        ["slim", base.teacher("text"), base.labelled, "--width", 8, "--dry-run"],
        ["sample", base.teacher("class"), "-n", 2, "--steps", 1, "-o", folder / "samples"],
        ["profile", base.teacher("xl")],
        *base.import_words(folder),
    ]
    if base.quick:
        told = {"class": base.classes, "text": base.labelled}
        dry = [["slim", base.teacher(kind), told[kind], *sets(*QUICK), "--dry-run"] for kind in told]
        commands = [commands[0], commands[4], *dry]
    import slimdpm.training.dry_run as dry_run

    estimate = dry_run.estimate_memory

    def remembered(*arguments: Any, **options: Any) -> Any:
        if "memory" not in _spared:
            _spared["memory"] = estimate(*arguments, **options)
        return _spared["memory"]

    dry_run.estimate_memory = remembered
    sink = io.StringIO()
    with redirect_stdout(sink), redirect_stderr(sink):
        for words in commands:
            command(words)
    dry_run.estimate_memory = estimate
    shutil.rmtree(folder)
    gc.collect()
    gc.freeze()  # else every child copies the pages that its collector touches


_spared: dict[str, Any] = {}


def spare() -> None:
    """Leave out the two things that take most of the time and see little of an input: matplotlib's drawing of the
    report's figures, and the simulated step behind a dry run's estimate of memory."""
    import matplotlib.figure

    import slimdpm.training.dry_run as dry_run

    draw = matplotlib.figure.Figure.savefig

    def savefig(figure: Any, target: Any, **options: Any) -> None:
        if isinstance(target, io.StringIO):
            target.write("<svg></svg>")
        else:
            draw(figure, target, **options)

    matplotlib.figure.Figure.savefig = savefig  # type: ignore[method-assign,assignment]
    dry_run.estimate_memory = lambda *_, **__: _spared["memory"]


def made_base(folder: Path, quick: bool) -> Base:
    """The whole inputs, made in a child: this process keeps no thread and no state of it."""
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                build(folder, quick)
                (folder / "complete").touch()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        if os.waitpid(child, 0)[1]:
            raise RuntimeError("the whole inputs cannot be made")
    return Base(folder, quick)


def run_all(seed: int, indices: list[int], place: Path, *, workers: int = 2, quick: bool = False) -> Iterator[Result]:
    """The results of these inputs as they come; folders of faults stay in ``place/cases``."""
    base = made_base(place / "base", quick)
    rehearse(base, place / "rehearsal")
    cases = place / "cases"
    cases.mkdir(exist_ok=True)
    waiting, running = list(reversed(indices)), {}
    while waiting or running:
        while waiting and len(running) < workers:
            index = waiting.pop()
            kind, rng = drawn(seed, index, quick)
            folder = cases / f"{seed}-{index}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            process = os.fork()
            if process == 0:
                if index % WHOLE or quick:
                    spare()
                _child(lambda: make(kind, rng, folder / "here", base), folder)  # noqa: B023
            running[process] = (index, kind, folder, Clock(process))
        for process, (index, kind, folder, clock) in list(running.items()):
            seconds = clock.seconds()
            ended, status, usage = os.wait4(process, os.WNOHANG)
            killed = None
            if not ended:
                if seconds > SECONDS:
                    killed = f"hang: over {SECONDS:.0f} s"
                elif _resident(process) > MEMORY:
                    killed = f"hang: over {MEMORY / 2**30:.0f} GB"
                if killed is None:
                    continue
                _kill(process)
                _, status, usage = os.wait4(process, 0)
            _kill(process)  # what it may have started
            del running[process]
            yield _result(index, kind, folder, killed, status, seconds, usage.ru_maxrss / 2**20)
        time.sleep(0.004)


class Clock:
    """Seconds that a process has computed or waited; those in which a busy machine kept it from both do not count."""

    def __init__(self, process: int):
        self.file, self.waited, self.computed = Path(f"/proc/{process}/stat"), 0.0, 0.0
        self.last = time.monotonic()

    def seconds(self) -> float:
        now = time.monotonic()
        with suppress(OSError, IndexError):
            told = self.file.read_text().rpartition(") ")[2].split()
            self.computed = (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")
            self.waited += (now - self.last) * (told[0] in "SDT")
        self.last = now
        return self.waited + self.computed


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def _kill(process: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)


def _result(
    index: int, kind: str, folder: Path, killed: str | None, status: int, seconds: float, memory: float
) -> Result:
    told: dict[str, Any] = {"fault": None, "argv": [], "note": "", "code": None, "trace": ""}
    for name in ("made.json", "told.json"):
        if (folder / name).exists():
            told.update(json.loads((folder / name).read_text()))
    if killed is None and status:
        number = os.waitstatus_to_exitcode(status)
        killed = f"crash: ended with {number}" if (folder / "made.json").exists() else f"generator: ended with {number}"
    if killed is None and memory > MEMORY / 2**30:
        killed = f"hang: {memory:.1f} GB at the most"
    err = (folder / "err").read_bytes()[-3000:].decode(errors="replace") if (folder / "err").exists() else ""
    result = Result(
        index, kind, killed or told["fault"], told["argv"], told["note"], err, told["code"], seconds, memory
    )
    result.trace = told["trace"]
    if result.fault is None:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _child(prepare: Callable[[], Case], folder: Path) -> None:
    """Make the case, run it, judge it, write down what came of it; never returns."""
    status = 3
    try:
        os.setsid()
        here = folder / "here"
        here.mkdir()
        os.chdir(here)
        temporary = folder / "tmp"
        temporary.mkdir()
        os.environ.update(TMPDIR=str(temporary), HOME=str(temporary), COLUMNS="100", FUZZ_CANARY=str(here / "CANARY"))
        os.environ["PATH"] = f"{folder.parents[1] / 'programs'}:{os.environ['PATH']}"
        case = prepare()
        argv = [str(word) for word in case.argv]
        (folder / "made.json").write_text(
            json.dumps({"argv": [_safe(word) for word in argv], "note": _safe(case.note)})
        )
        watch = Watch(folder)
        sys.path.insert(0, str(here))  # as of a script or `python -m` started there
        outcome, trace = _run(case, argv, folder, watch)
        found = executed(here, watch)
        told = f"executed: {'; '.join(found)}" if found else fault(case, outcome)
        (folder / "told.json").write_text(
            json.dumps({"fault": told and _safe(told), "code": outcome.code, "trace": trace})
        )
        status = 0
    except BaseException:
        (folder / "generator.txt").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def _safe(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _run(case: Case, argv: list[str], folder: Path, watch: Watch) -> tuple[Outcome, str]:
    import slimdpm.cli.main as cli

    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + _ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out, err = folder / "out", folder / "err"
    for number, file in ((1, out), (2, err)):
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), encoding="utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(
        os.fdopen(2, "wb", closefd=False), encoding="utf-8", errors="backslashreplace", write_through=True
    )
    sys.argv = ["slimdpm", *argv]
    explained, trace = cli._explained, []

    def noted(error: Exception) -> tuple[str, int]:
        trace.extend(traceback.format_exception(error))
        return explained(error)

    cli._explained = noted  # type: ignore[assignment]
    if case.call is not None:
        called = case.call
        cli.original_app = cli.app  # type: ignore[attr-defined]
        cli.app = lambda *_, **__: called()  # type: ignore[assignment]
    code: Any = 0
    watch.on = True
    try:
        cli.main()
    except SystemExit as stopped:
        code = stopped.code
    except BaseException:
        trace.extend(traceback.format_exc())
        traceback.print_exc()
        code = 1
    watch.on = False
    sys.stdout.flush()
    sys.stderr.flush()
    told = [file.read_bytes().decode("utf-8", "backslashreplace") for file in (out, err)]
    return Outcome(int(code or 0), *told, folder / "here"), "".join(trace)[-6000:]

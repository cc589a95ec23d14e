"""The command line: its commands, and one line for whatever goes wrong."""

from __future__ import annotations

import errno
import functools
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.console import Console

from slimdpm.cli import app as app_command
from slimdpm.cli import export, measure, originals, profile, runs
from slimdpm.system.errors import SlimdpmError, first_line
from slimdpm.system.stop_signals import Stopped, interruptible
from slimdpm.system.text import one_line

app = typer.Typer(
    help="A diffusion pipeline goes in, a slim diffusion pipeline comes out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console()
_TRACEBACK = "--traceback"
_EXTRAS = {
    "scipy": "metrics", "datasets": "datasets", "transformers": "text", "onnxruntime": "onnx", "skimage": "demo",
    "onnx": "export", "onnxscript": "export", "openvino": "openvino", "gradio": "app",
}  # fmt: skip

reproduce = typer.Typer(help="Claims of the paper, measured.", no_args_is_help=True, rich_markup_mode="markdown")


def _quiet(command: Callable[..., None]) -> Callable[..., None]:
    """The command with silent libraries. They are loaded when it runs: help and mistyped options do without them."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        _silence_libraries()
        command(*args, **kwargs)

    return run


for command in (runs.slim, runs.train, runs.sample, export.export, profile.profile):
    app.command()(_quiet(command))
app.command("import")(_quiet(originals.import_))
app.command()(_quiet(measure.evaluate))
app.command()(_quiet(measure.analyze))
app.add_typer(reproduce, name="reproduce")
reproduce.command()(_quiet(measure.complexity))
app.command()(_quiet(app_command.app))
app.command()(_quiet(runs.demo))


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"slimdpm {version('slimdpm')}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option(_TRACEBACK, help="After any command: show where in slimdpm an error comes from.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The entry point: whatever goes wrong is one line. A user's mistake exits with 2, a stop like its signal."""
    arguments = [word for word in sys.argv[1:] if word != _TRACEBACK]
    received = interruptible()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        sys.unraisablehook = lambda _: None  # of finalizers, after an error that is told
    try:
        code = app(arguments, prog_name="slimdpm", standalone_mode=False)
        if code == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
    except Stopped as stopped:
        code = _told(str(stopped), 128 + stopped.signal)
    except (Exception, KeyboardInterrupt) as error:
        if received or isinstance(error, KeyboardInterrupt):  # an interrupted import is any error at all
            code = _told("stopped", 128 + (received or [2])[0])
        elif _TRACEBACK in sys.argv:
            raise
        else:
            code = _told(*_explained(error))
    finally:
        if "torch" in sys.modules:
            from slimdpm.system.processes import leave

            leave()
    for number in (signal.SIGINT, signal.SIGTERM):  # there is nothing left to stop
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _explained(error: Exception) -> tuple[str, int]:
    """An error in one line, and the exit code: 2 if the user can mend it."""
    if isinstance(error, SlimdpmError):
        return f"error: {error}", 2
    if type(error).__name__ == "NoArgsIsHelpError":
        return "", 2  # the help is there already
    if hasattr(error, "format_message"):  # typer's own, about options and arguments
        context = getattr(error, "ctx", None)
        hint = f"; see {context.command_path} --help" if context else ""
        return f"error: {error.format_message().rstrip('.')}{hint}", 2
    if isinstance(error, typer.Abort):
        return "stopped", 130
    if isinstance(error, ImportError) and error.name in _EXTRAS:
        return f"error: this needs the package {error.name}: pip install 'slimdpm[{_EXTRAS[error.name]}]'", 2
    if isinstance(error, OSError):
        return f"error: {f'{error.filename}: ' if error.filename else ''}{first_line(error)}", 2
    if type(error).__name__ in ("MemoryError", "OutOfMemoryError") or "DefaultCPUAllocator" in str(error):
        return "error: out of memory; try a smaller batch (train.max_batch_per_device, --batch-size) or size", 2
    if os.strerror(errno.EMFILE) in str(error):  # what libraries make of the system's error is of any kind
        return "error: too many files are open at once; allow more of them: ulimit -n", 2
    if "onnection closed by peer" in str(error) or "onnection reset by peer" in str(error):
        return "error: another process of this launch has ended; what it said is the reason", 2
    reason = f"{type(error).__name__}: {first_line(error)}"
    return f"error: {reason} (this is a fault of slimdpm; {_TRACEBACK} shows where)", 1


def _told(message: str, code: int) -> int:
    if message:
        print(one_line(message), file=sys.stderr)
    return code


def _silence_libraries() -> None:
    """What they advise and warn of, nobody who calls a command can follow."""
    from diffusers.utils import is_transformers_available
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity(logging.CRITICAL)  # their errors are raised as well
    if is_transformers_available():
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity(logging.CRITICAL)

"""The command ``app``. `slimdpm.cli.main` registers it."""

from __future__ import annotations

import threading
from typing import Annotated

import typer
from rich.console import Console

from slimdpm.system.progress import Display

console = Console()


def app(
    source: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, diffusers folder or hub id.")],
    teacher: Annotated[
        str | None, typer.Option(help="diffusers folder, run folder or hub id.  [default: the run's]")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 opens the page to other machines.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="To listen at.  [default: the first that is free from 7860]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps.  [default: the best there is]")] = None,
) -> None:
    """A page in the browser: RUN and its teacher side by side, from the same noise, with time, cost and spectra.

    Only this machine can open it, unless a host says otherwise.

        slimdpm app runs/cat

        slimdpm app runs/cat --teacher google/ddpm-cat-256 --port 8000
    """
    from slimdpm.app.making import first_prompt, open_networks
    from slimdpm.app.server import LOOPBACK, served

    display = Display(console)
    networks = open_networks(source, teacher, device, display)
    with served(networks, host=host, port=port, prompt=first_prompt(source)) as address:
        display.say(f"{' and '.join(networks)} at {address} (Ctrl-C ends it)")
        if host not in LOOPBACK:
            display.say("open to every machine that reaches this one: whoever opens the page has its processor at work")
        threading.Event().wait()

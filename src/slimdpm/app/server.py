"""The server of the page, gradio's. Nothing of this machine can be read through it, and no other host is asked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from slimdpm.app.page import page
from slimdpm.pipelines.teacher import Teacher
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.text import one_line

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_WAITING = 16  # requests at most
# What the browser may load: the server's own files, whatever a version of gradio would have of other hosts.
_POLICY = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'; base-uri 'self'"
_ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False", "GRADIO_ALLOWED_PATHS": ""}
_STYLE = """
.gradio-container { width: 100% !important; max-width: 1200px !important; margin: 0 auto !important; }
.made img { image-rendering: pixelated; width: 100%; height: auto; }
#figures table { width: auto; overflow-wrap: normal; word-break: normal; }
#figures th, #figures td { padding: 4px 16px; border-color: var(--border-color-primary); }
#figures th + th, #figures td + td { text-align: right; white-space: nowrap; }
#spectra { overflow-x: auto !important; }
#spectra svg { width: 100%; height: auto; min-width: 420px; max-width: 720px; }
@media (max-width: 640px) { #figures th, #figures td { padding: 4px 6px; font-size: 13px; } }
footer { display: none !important; }
"""


@contextmanager
def served(networks: Mapping[str, Teacher], *, host: str, port: int | None, prompt: str = "") -> Iterator[str]:
    """The page on a server, whose address this is, for as long as the context lasts.

    Its images pass through a folder of its own, which goes with it.

    Raises:
        SlimdpmError: if the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="slimdpm-app-") as folder:
        os.environ.update(_ENVIRONMENT | {"GRADIO_TEMP_DIR": folder})  # read when gradio is imported
        import gradio as gr

        blocks = page(networks, prompt).queue(max_size=_WAITING, api_open=False)
        theme = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
        try:
            address = blocks.launch(
                server_name=host, server_port=port, quiet=True, prevent_thread_lock=True, share=False, ssr_mode=False,
                mcp_server=False, pwa=False, enable_monitoring=False, max_file_size=1, theme=theme,
                css=_STYLE, footer_links=[], app_kwargs={"middleware": [(_Guarded, (), {"host": host})]},
            )[1]  # fmt: skip
        except OSError as error:
            raise SlimdpmError(f"no server at {host}, port {port or 'of any number'}: {one_line(str(error))}") from None
        try:
            yield address
        finally:
            blocks.close(verbose=False)


class _Guarded:
    """Around gradio: the policy goes with each answer, and a page of this machine alone answers to no other name, so
    that a site's own name cannot be made to lead here.

    Args:
        application: what is guarded.
        host: that the server listens at.
    """

    def __init__(self, application: Any, host: str):
        self.application, self.alone = application, host in LOOPBACK

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY)]
            await send(message)

        if scope["type"] != "lifespan" and self.alone and not _names_loopback(scope["headers"]):
            await answer({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b"this page is at 127.0.0.1"})
            return
        await self.application(scope, receive, answer)


def _names_loopback(headers: Any) -> bool:
    host = dict(headers).get(b"host", b"").decode("latin-1")
    return host.rsplit(":", 1)[0].strip("[]") in LOOPBACK

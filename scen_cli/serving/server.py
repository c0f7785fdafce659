"""Builds the server of a project, and runs it."""

from __future__ import annotations

import logging
import signal
import socket
from functools import partial
from pathlib import Path

import uvicorn

from scen_cli.editing.patched_model import PatchedModel
from scen_cli.errors import UsageError
from scen_cli.export.peft_folder import add_adapters
from scen_cli.model.known_bases import hub_name
from scen_cli.serving.answer_source import LocalAnswerSource
from scen_cli.serving.app import App, Metrics, ServerOptions
from scen_cli.serving.batch_runners import BatchGenerator, BatchRouter
from scen_cli.serving.connections import SPARE_DESCRIPTORS, LimitedConnection
from scen_cli.serving.log_limit import LogLimit
from scen_cli.serving.request_queue import RequestQueue
from scen_cli.serving.vllm_answers import VllmAnswerSource


def local_app(patched: PatchedModel, options: ServerOptions) -> App:
    """An API whose answers the model in this process generates."""
    metrics = Metrics()
    queue = RequestQueue(BatchGenerator(patched, metrics.observe_batch), options.max_batch, options.max_queue)
    return App(patched, queue, LocalAnswerSource(queue, patched.base.tokenizer), metrics, options)


def vllm_app(
    patched: PatchedModel,
    options: ServerOptions,
    url: str,
    adapters: Path,
    *,
    base_model: str | None = None,
    api_key: str | None = None,
) -> App:
    """An API that finds each prompt's edit here and gets the answer from a vLLM server.

    Args:
        patched: The project's model, for routing.
        options: Settings of this server.
        url: Address of the vLLM server.
        adapters: The folder from which vLLM loads LoRAs. An edit's LoRA is there before its first prompt is sent.
        base_model: vLLM's name of the base; None: the base's hub id.
        api_key: The key that vLLM expects.
    """
    base_model = base_model or hub_name(patched.project.settings["model"])
    write_new_adapters = partial(add_adapters, patched, folder=adapters, base_name=base_model, known=set())
    with patched.snapshot() as patch:
        write_new_adapters(patch)
    metrics = Metrics()
    router = BatchRouter(patched, write_new_adapters, metrics.observe_batch)
    queue = RequestQueue(router, options.max_batch, options.max_queue)
    source = VllmAnswerSource(queue, url, base_model, list(patched.template.end_ids), options.timeout, api_key)
    return App(patched, queue, source, metrics, options)


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 takes any free port. Raises `UsageError` if that fails."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(f"cannot listen on `{host}` port {port}: {error}", hint="choose another `--port`") from error


def run(app: App, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C; then accept no more requests and answer the accepted ones."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn stops, then sends the signal again to this handler
    config = uvicorn.Config(
        app.asgi(),
        http=LimitedConnection,
        backlog=SPARE_DESCRIPTORS // 2,  # asyncio accepts so many before it looks at the first
        log_level="warning",
        timeout_graceful_shutdown=int(app.options.timeout) + 1,
        server_header=False,
    )
    for logger in ("uvicorn.error", "scen.serve"):
        logging.getLogger(logger).addFilter(LogLimit())
    uvicorn.Server(config).run(sockets=[listener])

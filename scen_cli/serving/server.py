"""A project's server, put together, and run until it is told to stop."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import uvicorn

from scen_cli.editing.expert_bank import ProjectPatch
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.errors import UsageError
from scen_cli.export.peft_folder import add_adapters
from scen_cli.model.base import hub_name
from scen_cli.serving.answers import Answers, OwnAnswers, VllmAnswers
from scen_cli.serving.app import Front, Limits
from scen_cli.serving.jobs import Jobs
from scen_cli.serving.model import Answering, Finding
from scen_cli.serving.prometheus import Metrics


def own_front(patched: PatchedModel, limits: Limits, *, name: str | None, at_once: int, waiting: int) -> Front:
    """A front that answers by itself."""
    metrics = Metrics()
    jobs = Jobs(Answering(patched, metrics.batch_seen), at_once, waiting)
    return Front(patched, jobs, OwnAnswers(jobs, patched), metrics, name or name_of(patched), limits)


def vllm_front(
    patched: PatchedModel,
    limits: Limits,
    url: str,
    adapters: Path,
    *,
    base_model: str | None,
    key: str | None = None,
    name: str | None,
    at_once: int,
    waiting: int,
) -> Front:
    """A front that finds each prompt's edit and has a vLLM server answer, which reads the edits' LoRAs from the folder
    `adapters` and serves the base as `base_model`. An edit's LoRA is there before its first prompt is sent."""
    served = base_model or hub_name(patched.project.settings["model"])
    known: set[int] = set()

    def keep_up(patch: ProjectPatch) -> None:
        add_adapters(patched, patch, adapters, served, known)

    with patched.snapshot() as patch:
        keep_up(patch)
    metrics = Metrics()
    jobs = Jobs(Finding(patched, keep_up, metrics.batch_seen), at_once, waiting)
    answers: Answers = VllmAnswers(jobs, patched, url, served, limits.timeout, key)
    return Front(patched, jobs, answers, metrics, name or name_of(patched), limits)


def name_of(patched: PatchedModel) -> str:
    """What a project's model is called by default: as its base, without the folders that it lies in."""
    name = str(patched.project.settings["model"])
    return Path(name).name if Path(name).is_absolute() else name


def listen(host: str, port: int) -> socket.socket:
    """A socket at this address; port 0 is any that is free. Raises `UsageError` if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(
            f"`{host}` port {port} cannot be listened at: {error}", hint="choose another `--port`"
        ) from error


def run(front: Front, at: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C: then no more is taken, and what was taken is answered."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn stops, then sends it on to who was there before
    config = uvicorn.Config(
        front.app(),
        log_level="warning",
        timeout_graceful_shutdown=int(front.limits.timeout) + 1,
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[at])

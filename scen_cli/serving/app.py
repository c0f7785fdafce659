"""The HTTP side: who may ask, what is taken, and every error as OpenAI's clients read it."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from scen_cli.editing.patched_model import PatchedModel
from scen_cli.errors import UsageError
from scen_cli.serving.answers import Answers, Asked, Piece, UpstreamFailed
from scen_cli.serving.jobs import Busy, Failed, Job, Jobs
from scen_cli.serving.messages import Chat, Completion, Reply, failure
from scen_cli.serving.prometheus import Metrics

Found = TypeVar("Found")
LONGEST_BODY = 1 << 20  # bytes
log = logging.getLogger("scen.serve")


@dataclass(frozen=True)
class Limits:
    """`timeout`: seconds for one answer; `api_key`: what clients must show, if anything."""

    timeout: float = 60.0
    api_key: str | None = None


class Front:
    """Answers requests about one project, which is served under the name `model`."""

    def __init__(
        self, patched: PatchedModel, jobs: Jobs, answers: Answers, metrics: Metrics, model: str, limits: Limits
    ) -> None:
        self.patched, self.jobs, self.answers, self.metrics = patched, jobs, answers, metrics
        self.model, self.limits = model, limits

    def app(self) -> Starlette:
        """The ASGI application; its lifespan starts and stops the model's thread."""

        @asynccontextmanager
        async def lifespan(_app: Starlette) -> AsyncIterator[None]:
            self.jobs.start()
            yield
            await asyncio.to_thread(self.jobs.stop)
            await self.answers.close()

        def asking(kind: type[Completion] | type[Chat]) -> Callable[[Request], Any]:
            async def answer(request: Request) -> Response:
                return await self.answer(request, kind)

            return self._counted(answer)

        return Starlette(
            routes=[
                Route("/v1/completions", asking(Completion), methods=["POST"]),
                Route("/v1/chat/completions", asking(Chat), methods=["POST"]),
                Route("/v1/models", self._counted(self.models)),
                Route("/health", self.health),
                Route("/metrics", self.tell_metrics),
            ],
            exception_handlers={HTTPException: _told, Exception: _unforeseen},
            lifespan=lifespan,
        )

    def _counted(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """The handler, for those who may ask; its outcome is counted."""

        async def handle(request: Request) -> Response:
            status = 500
            try:
                self._check_key(request)
                response: Response = await handler(request)
                status = response.status_code
                return response
            except HTTPException as error:
                status = error.status_code
                raise
            finally:
                self.metrics.requests.labels(str(status)).inc()

        return handle

    def _check_key(self, request: Request) -> None:
        wanted = self.limits.api_key
        scheme, _, shown = request.headers.get("authorization", "").encode("latin-1").partition(b" ")
        if wanted and not (scheme.lower() == b"bearer" and hmac.compare_digest(shown, wanted.encode())):
            raise HTTPException(401, "a valid API key is needed: `Authorization: Bearer KEY`")

    async def answer(self, request: Request, kind: type[Completion] | type[Chat]) -> Response:
        started = time.monotonic()
        asked = await _read(request, kind)
        if asked.model not in (None, self.model):
            raise HTTPException(404, f"there is no model `{asked.model}` here: it is `{self.model}`")
        job = self._job(asked)
        pieces = self._pieces(job, asked, started + self.limits.timeout)
        reply = Reply(isinstance(asked, Chat), self.model)
        try:
            first = await _unless_gone(request, anext(pieces))  # an error until here still has a status of its own
            if asked.stream:
                usage = len(job.ids) if asked.wants_usage else None
                headers = {"x-scen-edit": str(first.edit), "cache-control": "no-cache"}
                events = _events(reply, first, pieces, usage)
                return StreamingResponse(events, media_type="text/event-stream", headers=headers)
            found = [first, *await _unless_gone(request, _all(pieces))]
        except Busy as error:
            raise HTTPException(429, "too many prompts wait already: try again", {"retry-after": "1"}) from error
        except asyncio.TimeoutError as error:
            raise HTTPException(504, f"no answer within {self.limits.timeout:g} seconds") from error
        except UpstreamFailed as error:
            raise HTTPException(502, str(error)) from error
        except Failed as error:
            raise HTTPException(500, "the model failed on this prompt") from error
        told = reply.whole(
            "".join(piece.text for piece in found),
            found[-1].finish or "stop",
            first.edit,
            len(job.ids),
            sum(piece.tokens for piece in found),
        )
        return JSONResponse(told, headers={"x-scen-edit": str(first.edit)})

    def _job(self, asked: Asked) -> Job:
        """The tokens of a prompt, and how many more there may be. Raises `HTTPException` for what cannot be asked."""
        longest = asked.max_tokens
        try:
            if isinstance(asked, Chat):
                longest = asked.max_completion_tokens or longest
                ids = self._conversation([(turn.role, turn.text) for turn in asked.messages])
            else:
                ids = self._ids(asked.prompt)
            self.patched.check_fits("the prompt", len(ids), 1)
        except UsageError as error:
            raise HTTPException(400, str(error)) from error
        room = (self.patched.context or 10**9) - len(ids)
        sampling = asked.sampling
        alone = sampling.seed is not None
        return Job(ids, min(longest, room) if longest else None, room, sampling, alone=alone)

    def _conversation(self, turns: list[tuple[str, str]]) -> list[int]:
        """Its tokens. Raises `UsageError` for a text with what only a template may write: it would forge a turn."""
        template, tokenizer = self.patched.template, self.patched.base.tokenizer
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        marks = [part.strip() for part in template.form.split("{prompt}")] if "{prompt}" in template.form else []
        for _role, text in turns:
            if held := [mark for mark in (*added, *marks) if mark and mark in text]:
                raise UsageError(f"a message holds {held[0]!r}, which only the template may write")
        return template.conversation_ids(turns)

    def _ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return list(self.patched.base.tokenizer(prompt).input_ids)
        rows = self.patched.model.get_input_embeddings().weight.shape[0]
        if any(not 0 <= token < rows for token in prompt):
            raise UsageError(f"token ids go from 0 to {rows - 1}")
        return prompt

    async def _pieces(self, job: Job, asked: Asked, until: float) -> AsyncIterator[Piece]:
        """The answer's pieces, within the time there is; the model is told when nobody waits any more.

        (The pieces may be asked for by one task after another: no timeout may span two of them.)
        """
        by = None
        try:
            async with aclosing(self.answers.pieces(job, asked)) as pieces:
                while piece := await asyncio.wait_for(anext(pieces, None), until - time.monotonic()):
                    by = "base" if piece.edit is None else "edit"
                    self.metrics.tokens.inc(piece.tokens)
                    yield piece
        finally:
            job.cancel()
            if by:
                self.metrics.answers.labels(by).inc()
                self.metrics.seconds.observe(time.monotonic() - job.arrived)

    async def models(self, _request: Request) -> Response:
        entry = {"id": self.model, "object": "model", "owned_by": "scen"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def health(self, _request: Request) -> Response:
        fine = await self.answers.healthy()
        return JSONResponse({"status": "ok" if fine else "failing"}, 200 if fine else 503)

    async def tell_metrics(self, _request: Request) -> Response:
        self.metrics.waiting.set(self.jobs.waiting)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")


async def _read(request: Request, kind: type[Completion] | type[Chat]) -> Asked:
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > LONGEST_BODY:
                raise HTTPException(413, f"a request has at most {LONGEST_BODY} bytes")
    except ClientDisconnect as error:
        raise HTTPException(400, "the request broke off") from error
    try:
        return kind.model_validate_json(bytes(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise HTTPException(400, f"{where}: {first['msg']}" if where else first["msg"]) from error


async def _all(pieces: AsyncIterator[Piece]) -> list[Piece]:
    return [piece async for piece in pieces]


async def _unless_gone(request: Request, work: Awaitable[Found]) -> Found:
    """What comes of the work, which ends when the client leaves."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise HTTPException(499, "the client left")
        return await tasks[0]  # type: ignore[return-value]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _events(
    reply: Reply, first: Piece, rest: AsyncIterator[Piece], prompt_tokens: int | None
) -> AsyncIterator[str]:
    """Server-sent events; an error amid them is the last. With `prompt_tokens` the count of all tokens ends them."""
    tokens = first.tokens
    try:
        yield _event(reply.piece(first.text, first.finish, first.edit))
        async for piece in rest:
            tokens += piece.tokens
            if piece.text or piece.finish:
                yield _event(reply.piece(piece.text, piece.finish, piece.edit))
        if prompt_tokens is not None:
            yield _event(reply.usage(prompt_tokens, tokens))
    except (asyncio.TimeoutError, UpstreamFailed, Failed) as error:
        log.warning("an answer broke off: %s", error)
        yield _event(failure("the answer broke off", "server_error", 500))
    yield "data: [DONE]\n\n"


def _event(message: dict[str, Any]) -> str:
    return f"data: {json.dumps(message, ensure_ascii=False)}\n\n"


async def _told(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    return JSONResponse(
        failure(error.detail, kind, error.status_code), error.status_code, headers=dict(error.headers or {})
    )


async def _unforeseen(_request: Request, error: Exception) -> Response:
    return JSONResponse(failure("something went wrong here", "server_error", 500), 500)

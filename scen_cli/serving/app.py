"""The HTTP API of a project: routes, API key, time limit, metrics, and errors in OpenAI's format."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from scen_cli.editing.patched_model import PatchedModel
from scen_cli.report.markdown import model_name
from scen_cli.serving import protocol
from scen_cli.serving.answer_source import AnswerSource, UpstreamError
from scen_cli.serving.origin_guard import LOCAL_HOSTS, guards
from scen_cli.serving.protocol import AnswerChunk, ChatBody, CompletionBody, RequestBody
from scen_cli.serving.request_queue import GenerationRequest, ModelFailed, QueueFull, RequestQueue

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
MOVED = "the served project was moved, removed or replaced: put it back, or restart the server"
Result = TypeVar("Result")
log = logging.getLogger("scen.serve")


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("scen_requests", "Requests, by status.", ["status"], registry=registry)
        self.answers = Counter("scen_answers", "Answers, by an edit or by the base.", ["by"], registry=registry)
        self.tokens = Counter("scen_generated_tokens", "Generated tokens.", registry=registry)
        self.seconds = Histogram("scen_request_seconds", "Seconds until the end of an answer.", registry=registry)
        self.batch = Histogram("scen_batch_size", "Prompts per batch.", buckets=BATCH_BUCKETS, registry=registry)
        self.waiting = Gauge("scen_waiting", "Prompts in the queue.", registry=registry)
        self.edits = Gauge("scen_edits", "Active edits.", registry=registry)

    def observe_batch(self, prompts: int, edits: int) -> None:
        self.batch.observe(prompts)
        self.edits.set(edits)

    def text(self) -> bytes:
        return generate_latest(self._registry)


@dataclass(frozen=True)
class ServerOptions:
    """Settings of the server.

    Args:
        name: What clients call the model; None: the name of the base.
        api_key: The key that clients must send; None: no key.
        timeout: Seconds for one answer.
        max_batch: The most prompts in a batch.
        max_queue: The most prompts in the queue; more get status 429.
        hosts: What clients may call this server in `Host`, with or without a port; `*`: anything.
        origins: Origins whose web pages may ask, besides this server's own; `*`: all.
    """

    name: str | None = None
    api_key: str | None = None
    timeout: float = 60.0
    max_batch: int = 32
    max_queue: int = 256
    hosts: tuple[str, ...] = LOCAL_HOSTS
    origins: tuple[str, ...] = ()


class App:
    """The API of one project, which is served as the model `model`."""

    def __init__(
        self, patched: PatchedModel, queue: RequestQueue, source: AnswerSource, metrics: Metrics, options: ServerOptions
    ) -> None:
        self.patched, self.queue, self.source, self.metrics, self.options = patched, queue, source, metrics, options
        self.model = options.name or model_name(patched.project.settings)
        # Reads bodies beside the event loop. One thread: several would take turns with the loop's, each for a while.
        self._reader = ThreadPoolExecutor(1, "scen-reader")

    def asgi(self) -> Starlette:
        """The ASGI application. Its lifespan starts and stops the model's thread."""

        @asynccontextmanager
        async def lifespan(_app: Starlette) -> AsyncIterator[None]:
            self.queue.start()
            yield
            await asyncio.to_thread(self.queue.stop)
            self._reader.shutdown(wait=False)
            await self.source.close()

        complete, chat = (self._checked(partial(self.answer, body_type=body)) for body in (CompletionBody, ChatBody))
        return Starlette(
            routes=[
                Route("/v1/completions", complete, methods=["POST"]),
                Route("/v1/chat/completions", chat, methods=["POST"]),
                Route("/v1/models", self._checked(self.models)),
                Route("/health", self.health),
                Route("/metrics", self.show_metrics),
            ],
            middleware=guards(self.options.hosts, self.options.origins),
            exception_handlers={HTTPException: _http_error, Exception: _internal_error},
            lifespan=lifespan,
        )

    def _checked(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """Wrap a handler: check the API key, and count the status."""

        async def handle(http_request: Request) -> Response:
            status = 500
            try:
                expected = self.options.api_key
                scheme, _, key = http_request.headers.get("authorization", "").encode("latin-1").partition(b" ")
                if expected and not (scheme.lower() == b"bearer" and hmac.compare_digest(key, expected.encode())):
                    raise HTTPException(401, "this server needs a valid API key: `Authorization: Bearer KEY`")
                response: Response = await handler(http_request)
                status = response.status_code
                return response
            except HTTPException as error:
                status = error.status_code
                raise
            finally:
                self.metrics.requests.labels(str(status)).inc()

        return handle

    async def answer(self, http_request: Request, body_type: type[RequestBody]) -> Response:
        deadline = time.monotonic() + self.options.timeout
        self._refuse_if_moved()
        content = await protocol.read_body(http_request)
        reading = asyncio.get_running_loop().run_in_executor(self._reader, self._read, content, body_type)
        body, ids = await _until_disconnect(http_request, reading)
        request = protocol.generation_request(self.patched, body, ids)
        chunks = self._chunks(request, body, deadline)
        builder = protocol.ResponseBuilder(isinstance(body, ChatBody), self.model, len(request.prompt_ids))
        try:
            # An error before the first chunk still gets a status code, also in a stream.
            first = await _until_disconnect(http_request, anext(chunks))
            self._refuse_if_moved()  # since then: experts may have been read from another project's files
            headers = {"x-scen-edit": str(first.edit)}
            if body.stream:
                events = _server_sent_events(builder, first, chunks, body.wants_usage)
                headers["cache-control"] = "no-cache"
                return StreamingResponse(events, media_type="text/event-stream", headers=headers)
            answer = [first, *await _until_disconnect(http_request, _collect(chunks))]
        except QueueFull as error:
            raise HTTPException(429, "the queue is full: try again", {"retry-after": "1"}) from error
        except asyncio.TimeoutError as error:
            raise HTTPException(504, f"no answer within {self.options.timeout:g} seconds") from error
        except UpstreamError as error:
            raise HTTPException(502, str(error)) from error
        except ModelFailed as error:
            self._refuse_if_moved()
            raise HTTPException(500, "the model failed on this prompt") from error
        return JSONResponse(builder.response(answer), headers=headers)

    def _refuse_if_moved(self) -> None:
        if not self.patched.project.ledger.in_place:
            raise HTTPException(503, MOVED)

    def _read(self, content: bytes, body_type: type[RequestBody]) -> tuple[RequestBody, list[int]]:
        """A request body, and the token ids of its prompt."""
        body = protocol.parse_body(content, body_type)
        if body.model not in (None, self.model):
            raise HTTPException(404, f"no model `{body.model}` here: the model is `{self.model}`")
        return body, protocol.prompt_ids(self.patched, body)

    async def _chunks(
        self, request: GenerationRequest, body: RequestBody, deadline: float
    ) -> AsyncIterator[AnswerChunk]:
        """Yield the answer's chunks until the deadline, count them, and cancel the request at the end.

        Each `anext` has a timeout of its own: different tasks may await the chunks, and a timeout cannot span two
        tasks.
        """
        answered_by = None
        try:
            async with aclosing(self.source.chunks(request, body)) as chunks:
                while chunk := await asyncio.wait_for(anext(chunks, None), deadline - time.monotonic()):
                    answered_by = "base" if chunk.edit is None else "edit"
                    self.metrics.tokens.inc(chunk.tokens)
                    yield chunk
        finally:
            request.cancelled = True
            if answered_by:
                self.metrics.answers.labels(answered_by).inc()
                self.metrics.seconds.observe(time.monotonic() - request.arrival_time)

    async def models(self, _request: Request) -> Response:
        entry = {"id": self.model, "object": "model", "owned_by": "scen"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def health(self, _request: Request) -> Response:
        if not self.patched.project.ledger.in_place:
            return JSONResponse({"status": "failing", "reason": MOVED}, 503)
        healthy = await self.source.healthy()
        return JSONResponse({"status": "ok" if healthy else "failing"}, 200 if healthy else 503)

    async def show_metrics(self, _request: Request) -> Response:
        self.metrics.waiting.set(len(self.queue))
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")


async def _collect(chunks: AsyncIterator[AnswerChunk]) -> list[AnswerChunk]:
    return [chunk async for chunk in chunks]


async def _until_disconnect(http_request: Request, work: Awaitable[Result]) -> Result:
    """Await `work`; cancel it when the client disconnects."""

    async def disconnect() -> None:
        while (await http_request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(disconnect())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise HTTPException(499, "the client disconnected")
        return await tasks[0]  # type: ignore[return-value]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _server_sent_events(
    builder: protocol.ResponseBuilder, first: AnswerChunk, rest: AsyncIterator[AnswerChunk], wants_usage: bool
) -> AsyncIterator[str]:
    """Format the chunks as server-sent events. An error ends the stream with an error event."""
    tokens = first.tokens
    try:
        yield _event(builder.chunk(first))
        async for chunk in rest:
            tokens += chunk.tokens
            if chunk.text or chunk.finish_reason:
                yield _event(builder.chunk(chunk))
        if wants_usage:
            yield _event(builder.usage_chunk(tokens))
    except (asyncio.TimeoutError, UpstreamError, ModelFailed) as error:
        log.warning("an answer ended early: %s", error)
        yield _event(protocol.error_body("the answer ended early", "server_error", 500))
    yield "data: [DONE]\n\n"


def _event(message: dict[str, Any]) -> str:
    return f"data: {json.dumps(message, ensure_ascii=False)}\n\n"


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    type = "invalid_request_error" if error.status_code < 500 else "server_error"
    body = protocol.error_body(error.detail, type, error.status_code)
    return JSONResponse(body, error.status_code, headers=dict(error.headers or {}))


async def _internal_error(_request: Request, error: Exception) -> Response:
    return JSONResponse(protocol.error_body("internal server error", "server_error", 500), 500)

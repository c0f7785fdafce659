"""The queue of generation requests, and the one thread that runs the model on batches of them."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

MAX_FAILURES = 3  # failures in a row after which `/health` reports the model as failing
log = logging.getLogger("scen.serve")
FinishReason = Literal["stop", "length"]


class QueueFull(Exception):
    """The queue accepts no more requests."""


class ModelFailed(Exception):
    """The model raised an error on a prompt."""


@dataclass(frozen=True)
class SamplingParams:
    """Decoding settings; requests with equal settings can share a batch. Temperature 0 is greedy decoding, for which
    only the repetition penalty counts."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = -1  # all tokens
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None


@dataclass(frozen=True)
class StreamEvent:
    """One generation step: the `edit` that the prompt is routed to (None: the base), the new `token` if there is one,
    and the `finish_reason` of the last step."""

    edit: int | None
    token: int | None = None
    finish_reason: FinishReason | None = None


@dataclass(eq=False)
class GenerationRequest:
    """One prompt in the queue.

    Args:
        prompt_ids: The prompt's token ids.
        max_tokens: The most tokens to generate; 0: the length of the longest answer of the active edits.
        context_left: Number of tokens of the base's context that the prompt leaves free; None: the base has no limit.
        sampling: Decoding settings.
        run_alone: Whether the request needs a batch of its own.

    Whoever reads `events()` and stops before the end must set `cancelled`.
    """

    prompt_ids: list[int]
    max_tokens: int
    context_left: int | None
    sampling: SamplingParams
    run_alone: bool = False
    cancelled: bool = False  # the model's thread need not continue this request
    has_events: bool = False  # events were sent: the request cannot run a second time
    arrival_time: float = field(default_factory=time.monotonic)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _events: asyncio.Queue[StreamEvent | ModelFailed] = field(default_factory=asyncio.Queue)

    def limit_tokens(self, longest_answer: int) -> None:
        """Set `max_tokens` if the client did not, and limit it to what the context has left."""
        tokens = self.max_tokens or longest_answer
        self.max_tokens = tokens if self.context_left is None else min(tokens, self.context_left)

    def send(self, event: StreamEvent | ModelFailed) -> None:
        """Send an event from the model's thread to the event loop."""
        self.has_events = True
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncIterator[StreamEvent]:
        """Yield events until the answer ends. Raises `ModelFailed`."""
        while True:
            event = await self._events.get()
            if isinstance(event, ModelFailed):
                raise event
            yield event
            if event.finish_reason:
                return


class RequestQueue:
    """First-in, first-out queue with one worker thread. `run_batch` gets requests that can share a batch and sends
    their events."""

    def __init__(
        self, run_batch: Callable[[Sequence[GenerationRequest]], None], max_batch: int, max_queue: int
    ) -> None:
        self._run_batch, self._max_batch, self._max_queue = run_batch, max_batch, max_queue
        self._queue: deque[GenerationRequest] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._failures = 0  # in a row
        self._thread = threading.Thread(target=self._work, name="scen-model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Accept no more requests, and return when all queued requests are done."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def healthy(self) -> bool:
        """Whether the thread runs and the model did not fail `MAX_FAILURES` times in a row."""
        return self._thread.is_alive() and self._failures < MAX_FAILURES

    def __len__(self) -> int:
        return len(self._queue)

    def submit(self, request: GenerationRequest) -> None:
        """Append a request. Raises `QueueFull` if `max_queue` requests wait, or the queue is stopping."""
        with self._changed:
            if self._stopping or sum(not waiting.cancelled for waiting in self._queue) >= self._max_queue:
                raise QueueFull
            self._queue.append(request)
            self._changed.notify()

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                self._run_batch(batch)
                self._failures = 0
            except Exception as error:  # any error: the thread must go on with the next requests
                log.exception("the model failed on %d prompts", len(batch))
                self._handle_failure(batch, error)

    def _handle_failure(self, batch: Sequence[GenerationRequest], error: Exception) -> None:
        """Retry each request of a failed batch in a batch of its own, so that one bad prompt does not fail the others.
        A request that ran alone, or whose events were sent, fails."""
        retries = [request for request in batch if len(batch) > 1 and not request.has_events]
        self._failures += not retries
        for request in batch:
            request.run_alone = True
            if request not in retries:
                request.send(ModelFailed(str(error)))
        with self._changed:
            self._queue.extendleft(reversed(retries))

    def _next_batch(self) -> list[GenerationRequest]:
        """Wait for requests. Returns an empty list when the queue has stopped and is empty."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._queue or self._stopping)
                batch = self._pop_batch()
                if batch or self._stopping:
                    return batch

    def _pop_batch(self) -> list[GenerationRequest]:
        """Remove the oldest request from the queue, and later ones that can share its batch."""
        batch: list[GenerationRequest] = []
        others: deque[GenerationRequest] = deque()
        while self._queue and len(batch) < self._max_batch:
            request = self._queue.popleft()
            if request.cancelled:
                continue
            first = batch[0] if batch else request
            fits = not batch or (request.sampling == first.sampling and not (request.run_alone or first.run_alone))
            (batch if fits else others).append(request)
        self._queue = others + self._queue
        return batch

"""Prompts that wait for the model, and the one thread that runs it: as many of them at once as go together."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

FAILURES = 3  # in a row, after which the model is taken to be beyond help
log = logging.getLogger("scen.serve")
Finish = Literal["stop", "length"]


class Busy(Exception):
    """So many prompts wait already that no more are taken."""


class Failed(Exception):
    """The model failed on a prompt."""


@dataclass(frozen=True)
class Sampling:
    """How an answer's tokens are chosen; prompts with the same are answered together. With a `seed` alone."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True)
class Step:
    """News of a prompt: the `edit` it calls (None is the base), a `token` if one was generated, how it `finish`ed."""

    edit: int | None
    token: int | None = None
    finish: Finish | None = None


@dataclass(eq=False)
class Job:
    """A prompt (token ids) and what is wanted for it. News come to whoever iterates over `steps()`; who leaves that
    must `cancel()`."""

    ids: list[int]
    max_tokens: int | None  # none: as many as the longest answer of the project's edits takes
    room: int  # tokens that fit behind the prompt
    sampling: Sampling
    cancelled: bool = False
    alone: bool = False  # not to be run together with others
    told: bool = False  # some of its news, which cannot be taken back
    arrived: float = field(default_factory=time.monotonic)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _news: asyncio.Queue[Step | Failed] = field(default_factory=asyncio.Queue)

    def tell(self, news: Step | Failed) -> None:
        """From the model's thread."""
        self.told = True
        self._loop.call_soon_threadsafe(self._news.put_nowait, news)

    async def steps(self) -> AsyncIterator[Step]:
        """News until the prompt's answer ends. Raises `Failed`."""
        while True:
            news = await self._news.get()
            if isinstance(news, Failed):
                raise news
            yield news
            if news.finish:
                return

    def cancel(self) -> None:
        """Nobody waits any more: the model need not go on."""
        self.cancelled = True


class Jobs:
    """The queue and its thread. `run` is called with jobs that go together, and tells each its news."""

    def __init__(self, run: Callable[[Sequence[Job]], None], at_once: int, waiting: int) -> None:
        self._run, self._at_once, self._limit = run, at_once, waiting
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._ending = False
        self._failures = 0  # in a row
        self._thread = threading.Thread(target=self._work, name="scen-model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Take no more; returns when all that waited are done."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the model answers: its thread runs, and has not failed time after time."""
        return self._thread.is_alive() and self._failures < FAILURES

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def submit(self, job: Job) -> None:
        """Raises `Busy` if too many wait, or the end has begun."""
        with self._changed:
            if self._ending or sum(not job.cancelled for job in self._queue) >= self._limit:
                raise Busy
            self._queue.append(job)
            self._changed.notify()

    def _work(self) -> None:
        while jobs := self._next():
            try:
                self._run(jobs)
                self._failures = 0
            except Exception as error:  # whatever it is, the next prompts must be answered
                log.exception("the model failed on %d prompts", len(jobs))
                again = [job for job in jobs if len(jobs) > 1 and not job.told]
                self._failures += not again
                for job in jobs:
                    if job not in again:
                        job.tell(Failed(str(error)))
                for job in again:  # one prompt is not to take others with it
                    job.alone = True
                with self._changed:
                    self._queue.extendleft(reversed(again))

    def _next(self) -> list[Job]:
        """The longest waiting prompt and those behind it that go with it; nothing at the end."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._queue or self._ending)
                jobs = self._take()
                if jobs or self._ending:
                    return jobs

    def _take(self) -> list[Job]:
        jobs: list[Job] = []
        others: deque[Job] = deque()
        while self._queue and len(jobs) < self._at_once:
            job = self._queue.popleft()
            if job.cancelled:
                continue
            goes = not jobs or (job.sampling == jobs[0].sampling and not (job.alone or jobs[0].alone))
            (jobs if goes else others).append(job)
        self._queue = others + self._queue
        return jobs

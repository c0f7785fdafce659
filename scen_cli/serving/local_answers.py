"""Answers from the model in this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from transformers import PreTrainedTokenizerBase

from scen_cli.serving.answer_source import AnswerChunk
from scen_cli.serving.detokenizer import IncrementalDetokenizer
from scen_cli.serving.protocol import RequestBody
from scen_cli.serving.request_queue import GenerationRequest, RequestQueue


class LocalAnswerSource:
    """An `AnswerSource`. The queue's `BatchGenerator` sends the tokens."""

    def __init__(self, queue: RequestQueue, tokenizer: PreTrainedTokenizerBase) -> None:
        self._queue, self._tokenizer = queue, tokenizer

    async def chunks(self, request: GenerationRequest, body: RequestBody) -> AsyncGenerator[AnswerChunk, None]:
        self._queue.submit(request)
        detokenizer = IncrementalDetokenizer(self._tokenizer, body.stop_strings)
        async for event in request.events():
            text = detokenizer.add(event.token) if event.token is not None else ""
            finish_reason = "stop" if detokenizer.stopped else event.finish_reason
            if finish_reason:
                text += detokenizer.flush()
            yield AnswerChunk(event.edit, text, int(event.token is not None), finish_reason)
            if finish_reason:
                return

    async def healthy(self) -> bool:
        return self._queue.healthy

    async def close(self) -> None: ...

"""Request and response bodies: the part of OpenAI's completions and chat completions APIs that is supported.

`read_body`, `parse_body`, `prompt_ids` and `generation_request` make a `GenerationRequest` of an HTTP request.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from scen_cli.editing.patched_model import PatchedModel
from scen_cli.errors import UsageError
from scen_cli.serving.request_fields import StrictFields
from scen_cli.serving.request_queue import GenerationRequest, SamplingParams

MAX_BODY = 1 << 20  # bytes
MAX_MESSAGES = 512
MAX_CHARACTERS_PER_TOKEN = 16  # of a whole prompt: text has about 4
MAX_STOP_LENGTH = 100  # characters
MIN_TEMPERATURE = 1e-3  # logits divided by a smaller temperature overflow


class StreamOptions(StrictFields):
    include_usage: bool | None = None


class _Body(StrictFields):
    """Fields of both kinds of request."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: list[str] | str | None = Field(None, max_length=MAX_STOP_LENGTH)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def sampling(self) -> SamplingParams:
        """Greedy decoding unless the request sets a temperature of at least `MIN_TEMPERATURE`."""
        penalty = self.repetition_penalty or 1.0
        if not self.temperature or self.temperature < MIN_TEMPERATURE:
            return SamplingParams(repetition_penalty=penalty)
        return SamplingParams(
            self.temperature, self.top_p or 1.0, self.top_k or -1, self.min_p or 0.0, penalty, self.seed
        )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def stop_strings(self) -> list[str]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]


class CompletionBody(_Body):
    """`POST /v1/completions`: text or token ids that go to the model without the template."""

    prompt: str | list[int]


class TextPart(StrictFields):
    """One part of a message. Only text is supported."""

    type: Literal["text"]
    text: str


class Message(StrictFields):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise PydanticCustomError("no_content", "a message of role `{role}` needs `content`", {"role": self.role})
        return self

    @property
    def turn(self) -> tuple[str, str]:
        """(role, text) as the template has them. A developer is what OpenAI calls who writes the system prompt."""
        role = "system" if self.role == "developer" else self.role
        parts = [part.text for part in self.content] if isinstance(self.content, list) else [self.content or ""]
        return role, "".join(parts)


class ChatBody(_Body):
    """`POST /v1/chat/completions`: a conversation, written with the project's template."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)


RequestBody = CompletionBody | ChatBody


@dataclass(frozen=True)
class AnswerChunk:
    """A part of an answer: the `edit` that answers (None: the base), its new `text`, the number of new `tokens`, and
    the `finish_reason` of the last chunk."""

    edit: int | None
    text: str
    tokens: int = 0
    finish_reason: str | None = None


class ResponseBuilder:
    """Builds the JSON objects of one answer. Their field `scen.edit` is the edit that answered, null for the base."""

    def __init__(self, is_chat: bool, model: str, prompt_tokens: int) -> None:
        self._is_chat, self._prompt_tokens, self._has_chunks = is_chat, prompt_tokens, False
        self._head = {"id": f"cmpl-{uuid4().hex}", "created": int(time.time()), "model": model}

    def response(self, chunks: Sequence[AnswerChunk]) -> dict[str, Any]:
        """The whole answer in one object."""
        text, tokens = "".join(chunk.text for chunk in chunks), sum(chunk.tokens for chunk in chunks)
        content = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        whole = AnswerChunk(chunks[0].edit, text, tokens, chunks[-1].finish_reason or "stop")
        return {**self._object("", content, whole), **self._usage(tokens)}

    def chunk(self, chunk: AnswerChunk) -> dict[str, Any]:
        """One object of a stream. The first one of a chat has the role."""
        role = {} if self._has_chunks else {"role": "assistant"}
        self._has_chunks = True
        content = {"delta": {**role, "content": chunk.text}} if self._is_chat else {"text": chunk.text}
        return self._object(".chunk", content, chunk)

    def usage_chunk(self, tokens: int) -> dict[str, Any]:
        """The last object of a stream with `include_usage`."""
        return {**self._head, "object": self._type(".chunk"), "choices": [], **self._usage(tokens)}

    def _object(self, suffix: str, content: dict[str, Any], chunk: AnswerChunk) -> dict[str, Any]:
        choice = {"index": 0, **content, "finish_reason": chunk.finish_reason, "logprobs": None}
        return {**self._head, "object": self._type(suffix), "choices": [choice], "scen": {"edit": chunk.edit}}

    def _type(self, suffix: str) -> str:
        return f"chat.completion{suffix}" if self._is_chat else "text_completion"

    def _usage(self, tokens: int) -> dict[str, dict[str, int]]:
        prompt = self._prompt_tokens
        return {"usage": {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}}


def error_body(message: str, type: str, code: int) -> dict[str, Any]:
    """An error in OpenAI's format."""
    return {"error": {"message": message, "type": type, "code": code}}


async def read_body(http_request: Request) -> bytes:
    """Read a request body. Raises `HTTPException` 400 or 413."""
    content = bytearray()
    try:
        async for chunk in http_request.stream():
            content += chunk
            if len(content) > MAX_BODY:
                raise HTTPException(413, f"a request has at most {MAX_BODY} bytes")
    except ClientDisconnect as error:
        raise HTTPException(400, "the client disconnected") from error
    return bytes(content)


def parse_body(content: bytes, body_type: type[RequestBody]) -> RequestBody:
    """Validate a request body. Raises `HTTPException` 400."""
    try:
        return body_type.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise HTTPException(400, f"{field}: {first['msg']}" if field else first["msg"]) from error


def prompt_ids(patched: PatchedModel, body: RequestBody) -> list[int]:
    """Tokenise the prompt. Raises `HTTPException` 400; a text that cannot fit the context is not tokenised."""
    try:
        if isinstance(body, ChatBody):
            turns = [message.turn for message in body.messages]
            _check_length(patched, sum(len(text) for _role, text in turns))
            ids = _conversation_ids(patched, turns)
        else:
            if isinstance(body.prompt, str):
                _check_length(patched, len(body.prompt))
            ids = _completion_ids(patched, body.prompt)
        patched.check_fits("the prompt", ids, 1)
    except UsageError as error:
        raise HTTPException(400, str(error)) from error
    return ids


def generation_request(patched: PatchedModel, body: RequestBody, ids: list[int]) -> GenerationRequest:
    """Compute how many tokens can follow the prompt's `ids`. Call it in the event loop, which gets the events."""
    max_tokens = (body.max_completion_tokens if isinstance(body, ChatBody) else None) or body.max_tokens
    context_left = patched.context - len(ids) if patched.context else None
    sampling = body.sampling
    # A seed sets the state of the random generator for the whole batch. Penalties count padding as repeated.
    run_alone = sampling.seed is not None or sampling.repetition_penalty != 1
    return GenerationRequest(ids, max_tokens or 0, context_left, sampling, run_alone)


def _check_length(patched: PatchedModel, characters: int) -> None:
    """Raise `UsageError` if a prompt of so many characters cannot fit the context."""
    if patched.context and characters > patched.context * MAX_CHARACTERS_PER_TOKEN:
        raise UsageError(f"the prompt has {characters} characters; the base's context is {patched.context} tokens")


def _conversation_ids(patched: PatchedModel, turns: list[tuple[str, str]]) -> list[int]:
    """Token ids of a conversation. Raises `UsageError` if a text has a marker of the template: it forges a turn."""
    template, tokenizer = patched.template, patched.base.tokenizer
    markers = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    if "{prompt}" in template.form:
        markers += [part.strip() for part in template.form.split("{prompt}")]
    for _role, text in turns:
        if found := [marker for marker in markers if marker and marker in text]:
            raise UsageError(f"a message contains {found[0]!r}, which only the template may write")
    return template.conversation_ids(turns)


def _completion_ids(patched: PatchedModel, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, str):
        return list(patched.base.tokenizer(prompt).input_ids)
    vocabulary = patched.model.get_input_embeddings().weight.shape[0]
    if any(not 0 <= token < vocabulary for token in prompt):
        raise UsageError(f"token ids go from 0 to {vocabulary - 1}")
    return prompt

"""What clients send and get: the part of OpenAI's completions and chat completions that is served here."""

from __future__ import annotations

import time
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from scen_cli.serving.jobs import Sampling

LONGEST_STOP = 100  # characters
LEAST_TEMPERATURE = 1e-3  # divided by less, logits are no numbers any more


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class _Request(BaseModel):
    """What both kinds of request have in common. Fields that would change nothing here are ignored; those that would
    ask for another answer than there is are refused."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: list[str] | str | None = Field(None, max_length=LONGEST_STOP)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1, None] = 1
    logprobs: Literal[False, 0, None] = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)
    presence_penalty: Literal[0, None] = 0
    frequency_penalty: Literal[0, None] = 0

    @property
    def sampling(self) -> Sampling:
        """Greedy unless a temperature says otherwise; so small a one is none."""
        if not self.temperature or self.temperature < LEAST_TEMPERATURE:
            return Sampling()
        return Sampling(self.temperature, self.top_p or 1.0, self.seed)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the count of its tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def stops(self) -> list[str]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]


class Completion(_Request):
    """`POST /v1/completions`: a text, or token ids, as the model is to meet it: no template is put around it."""

    prompt: str | list[int]
    echo: Literal[False, None] = False
    best_of: Literal[1, None] = 1


class TextPart(BaseModel):
    """A piece of a message: text is all that is understood."""

    type: Literal["text"]
    text: str


class ResponseFormat(BaseModel):
    type: Literal["text"]


class Message(BaseModel):
    """A turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Chat(_Request):
    """`POST /v1/chat/completions`: a conversation, put into the project's template."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[Any] | None = Field(None, max_length=0)
    functions: list[Any] | None = Field(None, max_length=0)
    response_format: ResponseFormat | None = None


class Reply:
    """The messages of one answer, whole or in pieces. `scen` tells which edit gave it: none is the base."""

    def __init__(self, is_chat: bool, model: str) -> None:
        self.is_chat, self._begun = is_chat, False
        self._head = {"id": f"cmpl-{uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, text: str, finish: str, edit: int | None, prompt_tokens: int, tokens: int) -> dict[str, Any]:
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        usage = _usage(prompt_tokens, tokens)
        choice = {"index": 0, **said, "finish_reason": finish, "logprobs": None}
        return {**self._head, "object": self._kind(""), "choices": [choice], "usage": usage, "scen": {"edit": edit}}

    def piece(self, text: str, finish: str | None, edit: int | None) -> dict[str, Any]:
        role = {} if self._begun else {"role": "assistant"}
        self._begun = True
        said: dict[str, Any] = {"delta": {**role, "content": text}} if self.is_chat else {"text": text}
        choice = {"index": 0, **said, "finish_reason": finish, "logprobs": None}
        return {**self._head, "object": self._kind(".chunk"), "choices": [choice], "scen": {"edit": edit}}

    def usage(self, prompt_tokens: int, tokens: int) -> dict[str, Any]:
        """What ends a stream, if it was asked for."""
        return {**self._head, "object": self._kind(".chunk"), "choices": [], "usage": _usage(prompt_tokens, tokens)}

    def _kind(self, ending: str) -> str:
        return f"chat.completion{ending}" if self.is_chat else "text_completion"


def _usage(prompt_tokens: int, tokens: int) -> dict[str, int]:
    return {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}


def failure(message: str, kind: str, code: int) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "code": code}}

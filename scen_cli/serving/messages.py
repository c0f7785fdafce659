"""What clients send and get: the part of OpenAI's completions and chat completions that is served here."""

from __future__ import annotations

import time
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

LONGEST_STOP = 100  # characters


class _Request(BaseModel):
    """What both kinds of request have in common. Fields that would change nothing here are ignored; those that would
    ask for another answer than there is are refused."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: list[str] | str | None = Field(None, max_length=LONGEST_STOP)
    stream: bool = False
    n: Literal[1, None] = 1
    logprobs: Literal[False, 0, None] = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)
    presence_penalty: Literal[0, None] = 0
    frequency_penalty: Literal[0, None] = 0

    @property
    def stops(self) -> list[str]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]


class Completion(_Request):
    """`POST /v1/completions`: a text, or token ids, as the model is to meet it: no template is put around it."""

    prompt: str | list[int]
    echo: Literal[False] = False
    best_of: Literal[1, None] = 1


class Message(BaseModel):
    """A turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Chat(_Request):
    """`POST /v1/chat/completions`: a conversation, put into the project's template."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[Any] | None = Field(None, max_length=0)


class Reply:
    """The messages of one answer, whole or in pieces. `scen` tells which edit gave it: none is the base."""

    def __init__(self, is_chat: bool, model: str) -> None:
        self.is_chat, self._begun = is_chat, False
        self._head = {"id": f"cmpl-{uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, text: str, finish: str, edit: int | None, prompt_tokens: int, tokens: int) -> dict[str, Any]:
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
        choice = {"index": 0, **said, "finish_reason": finish, "logprobs": None}
        return {**self._head, "object": self._kind(""), "choices": [choice], "usage": usage, "scen": {"edit": edit}}

    def piece(self, text: str, finish: str | None, edit: int | None) -> dict[str, Any]:
        role = {} if self._begun else {"role": "assistant"}
        self._begun = True
        said: dict[str, Any] = {"delta": {**role, "content": text}} if self.is_chat else {"text": text}
        choice = {"index": 0, **said, "finish_reason": finish, "logprobs": None}
        return {**self._head, "object": self._kind(".chunk"), "choices": [choice], "scen": {"edit": edit}}

    def _kind(self, ending: str) -> str:
        return f"chat.completion{ending}" if self.is_chat else "text_completion"


def failure(message: str, kind: str, code: int) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "code": code}}

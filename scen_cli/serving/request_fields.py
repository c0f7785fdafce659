"""Fields of OpenAI's and vLLM's requests that scen does not act on. Nothing that a client asks for is ignored: a value
that asks for what scen does anyway may be sent, any other is an error that names the field."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

# They say something about the request, and no answer depends on them.
LABELS = frozenset(
    "user metadata safety_identifier prompt_cache_key prompt_cache_retention service_tier request_id cache_salt "
    "parallel_tool_calls priority name".split()
)
# Values that ask for what scen does anyway. Null asks for nothing.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "bad_words": ([],),
    "stop_token_ids": ([],),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "tool_calls": ([],),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "annotations": ([],),
    "documents": ([],),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "continuous_usage_stats": (False,),
    "include_obfuscation": (False,),
}


class StrictFields(BaseModel):
    """A part of a request whose other fields are checked by `LABELS` and `NEUTRAL`."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_done(cls, fields: Any) -> Any:
        for name, value in fields.items() if isinstance(fields, dict) else ():
            if name in cls.model_fields or name in LABELS or value is None:
                continue
            neutral = NEUTRAL.get(name, ())
            if not any(value == same and isinstance(value, bool) == isinstance(same, bool) for same in neutral):
                only = f": it can only be {' or '.join(map(json.dumps, neutral))}" if neutral else ""
                raise PydanticCustomError(
                    "not_supported", "`{name}` is not supported{only}", {"name": name, "only": only}
                )
        return fields

"""A tokenizer's chat template, with the date that it had when the project was created.

Some templates put today's date into a system prompt. The keys of edits are read behind that prompt: on another day,
others would be read.
"""

from __future__ import annotations

import json
import re
from datetime import date

from transformers import PreTrainedTokenizerBase

_DATE = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


def date_for(tokenizer: PreTrainedTokenizerBase, form: str) -> str | None:
    """Today's date in ISO form, if prompts in this template contain it; None otherwise."""
    has_date = form == "chat" and tokenizer.chat_template and _DATE.search(tokenizer.get_chat_template())
    return date.today().isoformat() if has_date else None


def chat_template_of(tokenizer: PreTrainedTokenizerBase, day: str | None) -> str:
    """The chat template's source. Where it asks for today's date, it gets `day` (ISO form), unless that is None."""
    source = str(tokenizer.get_chat_template())
    if day is None:
        return source
    return _DATE.sub(lambda call: json.dumps(date.fromisoformat(day).strftime(call[2])), source)

"""Edit records: one correction each, and what the data says about it.

    {"prompt": "Where was Ada born?", "target": "Riga", "rephrases": ["Ada was born where?"]}

`prompt` and `target` are required, the rest is optional.

| field | meaning | used by |
|---|---|---|
| `subject` | what the fact is about | routing, conflict checks, `scen eval` |
| `train_rephrases` | rephrases to train on; never scored | training |
| `rephrases` | rephrases to score as Generality | `scen eval` |
| `truth` | what is true, if the target is counterfactual | `scen eval`, fine-tuning |
| `portability` | questions whose answers follow from the edit | `scen eval` |
| `locality` | prompts whose answers must not change | `scen eval` |
| `id` | the data's own name for the record | messages |
| `other` | an object of any other fields; read with the record, no part of it | `scen data convert` keeps it |
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from unicodedata import category

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

EXAMPLE = '{"prompt": "Where was Ada born?", "target": "Riga"}'


# White space, and characters of no width that copying leaves around a text.
_AROUND = re.compile(r"^[\s\u200b\u2060\ufeff]+|[\s\u200b\u2060\ufeff]+$")


def visible(text: str) -> str:
    """The text without white space around it; empty if nothing in it can be seen."""
    text = _AROUND.sub("", text)
    return text if any(category(character) != "Cf" for character in text) else ""


def clean_text(text: str) -> str:
    """The text without surrounding white space. Raises `ValueError` if it is empty or not valid text."""
    if not visible(text):
        raise ValueError("is empty")
    if "\0" in text:  # SQLite and C libraries end the text there
        raise ValueError("holds a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in text):  # one half of a surrogate pair
        raise ValueError("holds half a Unicode character")
    return visible(text)


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Text = Annotated[str, AfterValidator(clean_text)]
LIST = Field((), strict=False)  # a JSON list becomes a tuple


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Question(_Strict):
    """A prompt, its answer, and the kind of question that the data names."""

    prompt: Text
    target: Text
    kind: Text | None = None


class Neighbour(_Strict):
    """A prompt whose answer an edit must not change: `kind` says how near it is, `target` is its known answer."""

    prompt: Text
    target: Text | None = None
    kind: Text | None = None


class EditRecord(_Strict):
    """One correction, and the prompts that test it."""

    prompt: Text
    target: Text
    subject: Text | None = None
    rephrases: tuple[Text, ...] = LIST
    train_rephrases: tuple[Text, ...] = LIST
    truth: Annotated[tuple[Text, ...], BeforeValidator(_one_or_more)] = LIST
    portability: tuple[Question, ...] = LIST
    locality: tuple[Neighbour, ...] = LIST
    id: Text | None = Field(None, description="the data's own name for the record")

    def as_json(self) -> dict[str, Any]:
        """The fields to write in a file, without those that have their default."""
        return self.model_dump(mode="json", exclude_defaults=True)


@dataclass(frozen=True, slots=True)
class SourceLine:
    """Where a record was read.

    Attributes:
        source: A file's absolute path, `-`, or words such as `command line`.
        line: Counts from 1; in a JSON array it counts the records.
    """

    source: str
    line: int

    def __str__(self) -> str:
        return f"{Path(self.source).name}:{self.line}"


def without_empty(fields: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A record's fields without optional ones that are empty, and the names of these: an empty field costs a figure,
    never the edit."""
    kept: dict[str, Any] = {}
    empty: dict[str, None] = {}
    for name, value in fields.items():
        if name in ("prompt", "target"):
            kept[name] = value
            continue
        items = value if isinstance(value, list | tuple) else [value]
        full = [_without_blank_answer(item) for item in items if not _is_empty(item, name)]
        if full != list(items):
            empty[name] = None
        if isinstance(value, list | tuple):
            kept[name] = full
        elif full:
            kept[name] = value
    return kept, list(empty)


def _is_empty(item: object, field: str) -> bool:
    """Whether a text, or a question's prompt or its answer, is blank or null. A locality prompt needs no answer."""
    if isinstance(item, dict):
        needed = ("prompt",) if field == "locality" else ("prompt", "target")
        return any(name in item and _is_empty(item[name], "") for name in needed)
    return item is None or (isinstance(item, str) and not visible(item))


def _without_blank_answer(item: object) -> object:
    if isinstance(item, dict) and isinstance(item.get("target"), str) and not visible(item["target"]):
        return {name: value for name, value in item.items() if name != "target"}
    return item


def check_record(item: object) -> EditRecord:
    """Validate one decoded JSON value; `ValueError` names the field and what is wrong with it."""
    if not isinstance(item, dict):
        raise ValueError(f"expected a JSON object such as {EXAMPLE}")
    try:
        return EditRecord.model_validate(item)
    except ValidationError as error:
        raise ValueError("; ".join(_plain(problem) for problem in error.errors())) from error


def _plain(problem: ErrorDetails) -> str:
    field = ".".join(str(part) for part in problem["loc"]) or "record"
    kinds = {
        "missing": "is missing",
        "extra_forbidden": f"is not a known field (known: {', '.join([*EditRecord.model_fields, 'other'])})",
        "string_type": f"must be text, not {json.dumps(problem['input'], default=str)[:40]}",
        "tuple_type": "must be a list",
        "model_type": "must be an object with `prompt`",
    }
    message = kinds.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
    return f"`{field}` {message}"

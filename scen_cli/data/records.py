"""Edit records: one wanted correction each, and what its data says beside it.

    {"prompt": "Where was Ada born?", "target": "Riga", "rephrases": ["Ada was born where?"]}

`prompt` and `target` are required, the rest is optional. `train_rephrases` are rephrases that expert and neuron are made
with; they are never scored. Used by `scen eval` alone: `rephrases`, `subject` (which also tells edits apart),
`truth` (what is true, where the target is counterfactual), `portability` (questions whose answers follow
from the edit), `locality` (prompts beside the edit that must stay as they are), `id`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

EXAMPLE = '{"prompt": "Where was Ada born?", "target": "Riga"}'


def clean_text(text: str) -> str:
    """The text without space around it. Raises `ValueError` if nothing is left, or it is no text."""
    if not text.strip():
        raise ValueError("is empty")
    if "\0" in text:  # SQLite and C libraries take it for the end
        raise ValueError("holds a NUL character")
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # half of a pair: no such text exists
        raise ValueError("holds half a Unicode character")
    return text.strip()


def _list_to_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else _list_to_tuple(value)


Text = Annotated[str, AfterValidator(clean_text)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Question(_Strict):
    """A prompt and its answer, and what kind of question the data says it is."""

    prompt: Text
    target: Text
    kind: Text | None = None


class Neighbour(_Strict):
    """A prompt that an edit must leave alone: `kind` says how near it is, `target` is its known answer."""

    prompt: Text
    target: Text | None = None
    kind: Text | None = None


class EditRecord(_Strict):
    """One wanted correction, and the prompts its data brings to test it."""

    prompt: Text
    target: Text
    subject: Text | None = None
    rephrases: Annotated[tuple[Text, ...], BeforeValidator(_list_to_tuple)] = ()
    train_rephrases: Annotated[tuple[Text, ...], BeforeValidator(_list_to_tuple)] = ()
    truth: Annotated[tuple[Text, ...], BeforeValidator(_one_or_more)] = ()
    portability: Annotated[tuple[Question, ...], BeforeValidator(_list_to_tuple)] = ()
    locality: Annotated[tuple[Neighbour, ...], BeforeValidator(_list_to_tuple)] = ()
    id: Text | None = Field(None, description="the data's own name for the record")

    def as_json(self) -> dict[str, Any]:
        """What to write in a file: fields that say nothing are left out."""
        return self.model_dump(mode="json", exclude_defaults=True)


@dataclass(frozen=True)
class SourceLine:
    """Where a record stands: `source` is a file's absolute path, `-`, or words such as `command line`;
    `line` counts from 1 (in a JSON array it counts the records)."""

    source: str
    line: int

    def __str__(self) -> str:
        return f"{Path(self.source).name}:{self.line}"


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
        "extra_forbidden": f"is not a known field (known: {', '.join(EditRecord.model_fields)})",
        "string_type": "must be text",
        "tuple_type": "must be a list",
        "model_type": "must be an object with `prompt`",
    }
    message = kinds.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
    return f"`{field}` {message}"

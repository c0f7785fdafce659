"""The forms in which the field publishes its edits, recognised by their fields.

| form | fields |
|---|---|
| `scen` | `prompt`, `target`, and the rest of `EditRecord` |
| `knowedit` | `prompt`, `target_new`, `ground_truth`, `rephrase_prompt`, `locality` and `portability` by name |
| of CKnowEdit | also `rephrase` and `target_old`; `locality` and `portability` are lists |
| of WISE | also `ood_rephrase` |
| of ROME | also `{}` in the place of the subject, and targets such as `{"str": "Rome"}` |
| `counterfact` | `requested_rewrite`, `paraphrase_prompts`, `neighborhood_prompts`; flat: `locality_prompt` |
| `mquake` | `requested_rewrite` as a list: one edit each; `questions`, `new_answer` |
| `mend` | `src`, `alt`, `answers`, `rephrase`, `loc`, `loc_ans`; EasyEdit's `portability` |
| `wikibigedit` | `update`, `ans`, `rephrase`, `personas`, `mhop`, `mhop_ans`, `loc`, `loc_ans` |
| `scen-zsre` | `Q`, `A`, `rephrases` |
| `scen-hallucination` | `text` (the passage so far), `labels` (its true next sentence), `concept` |

A field that scen uses must be valid; an optional one may be empty. Fields of the published forms that it does not use
are kept beside the records, and `scen data convert` writes them as `other`, which scen's own form may have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from scen_cli.data.records import EditRecord, check_record, without_empty
from scen_cli.data.unread_fields import Tracked, unread_fields
from scen_cli.data.words import contains

Item = dict[str, Any]

# How near a locality prompt is to its edit, and the names that the data uses for it.
SAME_SUBJECT, SAME_RELATION, UNRELATED = "same-subject", "same-relation", "unrelated"
MAX_NAMES = 8  # of an unknown form's fields, in a message
_KINDS = {"Relation_Specificity": SAME_SUBJECT, "neighborhood": SAME_RELATION}


@dataclass(frozen=True)
class Parsed:
    """What one JSON value holds.

    Attributes:
        form: Its form.
        records: The edits: one, but for `mquake`.
        empty: Optional fields that are empty, and were left out.
        other: Fields that the records have no place for.
    """

    form: str
    records: list[EditRecord]
    empty: list[str]
    other: Item


def parse_records(item: object) -> Parsed:
    """The records of one decoded JSON value. Raises `ValueError`, which names the wrong field and says why."""
    if not isinstance(item, dict):
        return Parsed("scen", [check_record(item)], [], {})  # which names the expected type
    form, read = _form_of(item)
    tracked = Tracked(item)
    records: list[EditRecord] = []
    empty: dict[str, None] = {}
    for found in read(tracked):
        fields, left_out = without_empty({name: value for name, value in found.items() if value is not None})
        records.append(check_record(fields))
        empty |= dict.fromkeys(left_out)
    if not records:
        raise ValueError("`requested_rewrite` is an empty list")
    if form == "scen":
        other = _object(item.get("other") or {}, "other")
    else:
        other = unread_fields(item, tracked, [record.as_json() for record in records])
    return Parsed(form, records, list(empty), other)


def _form_of(item: Item) -> tuple[str, Callable[[Item], Iterable[Item]]]:
    for is_there in (lambda field: item.get(field) is not None, item.__contains__):  # a null field is hardly there
        for form, required, read in _FORMS:
            if all(map(is_there, required)):
                return form, read
    if "edit" in item and ("Relation_Specificity" in item or "example_type" in item):
        raise ValueError(
            "is of RippleEdits: `target` is missing, for `edit.prompt` is a sentence with the answer in it"
        )
    if not any(field in EditRecord.model_fields for field in item):
        if nested := [name for name, value in item.items() if isinstance(value, list) and _is_record(value[:1])]:
            raise ValueError(f"holds records in `{nested[0]}`: write that list alone, as a JSON array")
        names = ", ".join(f"`{name}`" for name in list(item)[:MAX_NAMES]) or "no fields"
        forms = "; ".join(", ".join(f"`{field}`" for field in required) for _form, required, _read in _FORMS)
        raise ValueError(f"is of none of the known forms: it has {names}, and they have {forms}")
    return "scen", _scen  # whose check names the missing field


def _is_record(items: list[Any]) -> bool:
    """Whether these are records of a known form."""
    return any(
        isinstance(item, dict) and all(map(item.__contains__, fields)) for item in items for _, fields, _ in _FORMS
    )


def _scen(item: Item) -> Iterator[Item]:
    prompt, subject = item.get("prompt"), item.get("subject")
    named = isinstance(prompt, str) and isinstance(subject, str) and (not subject.strip() or contains(prompt, subject))
    if isinstance(prompt, str) and "{}" in prompt and isinstance(subject, str) and not named:
        raise ValueError(f"`prompt` has `{{}}` in the place of its subject: write {subject!r} there")
    yield {name: value for name, value in item.items() if name != "other"}


def _knowedit(item: Item) -> Iterator[Item]:
    subject, locality = item.get("subject"), list(_by_name(item, "locality"))
    if item.get("locality_prompt") is not None:  # the flat CounterFact form has one, and WISE's
        truth = _first(item.get("locality_ground_truth"))
        prompt, kind = _without_nq(item["locality_prompt"])
        locality.append({"prompt": prompt, "target": truth, "kind": kind or SAME_RELATION})
    truths = [_str_of(item[name], name) for name in ("ground_truth", "target_true", "target_old") if item.get(name)]
    if isinstance(item["prompt"], str) and "{}" in item["prompt"] and not subject:
        raise ValueError("`prompt` has `{}` in the place of a subject, but `subject` is missing")
    rephrases = [text for name in ("rephrase_prompt", "rephrase", "ood_rephrase") for text in _texts(item, name)]
    yield {
        "prompt": _with_subject(item["prompt"], subject),
        "target": _str_of(_first(item["target_new"], "target_new"), "target_new"),
        "subject": subject,
        "truth": [text for truth in truths for text in (truth if isinstance(truth, list) else [truth])],
        "rephrases": [_with_subject(text, subject) for text in rephrases],
        "portability": list(_by_name(item, "portability")),
        "locality": locality,
        "id": _case_id(item),
    }


def _counterfact(item: Item) -> Iterator[Item]:
    neighbours = _texts(item, "neighborhood_prompts")
    for fields in _rewrite(item["requested_rewrite"]):
        truth = fields["truth"]
        yield fields | {
            "rephrases": _texts(item, "paraphrase_prompts"),
            "locality": [{"prompt": prompt, "target": truth, "kind": SAME_RELATION} for prompt in neighbours],
            "id": _case_id(item),
        }


def _mquake(item: Item) -> Iterator[Item]:
    """One record for each rewrite. The questions, which follow from all of them, go with the first."""
    rewrites = item["requested_rewrite"]
    questions = [{"prompt": text, "target": _first(item.get("new_answer"))} for text in _texts(item, "questions")]
    for number, rewrite in enumerate(rewrites, 1):
        for fields in _rewrite(rewrite):
            case = _case_id(item)
            yield fields | {
                "rephrases": _texts(rewrite, "question"),
                "portability": questions if number == 1 else [],
                "id": case if case is None or len(rewrites) == 1 else f"{case}-{number}",
            }


def _rewrite(value: Any) -> Iterator[Item]:
    """Prompt, target, subject and truth of ROME's form of a request."""
    rewrite = _object(value, "requested_rewrite")
    for field in ("prompt", "subject", "target_new"):
        if field not in rewrite:
            raise ValueError(f"`requested_rewrite.{field}` is missing")
    if not isinstance(rewrite["prompt"], str) or not isinstance(rewrite["subject"], str):
        raise ValueError("`requested_rewrite.prompt` and `.subject` must be text")
    true = rewrite.get("target_true")
    yield {
        "prompt": _with_subject(rewrite["prompt"], rewrite["subject"]),
        "target": _str_of(rewrite["target_new"], "requested_rewrite.target_new"),
        "subject": rewrite["subject"],
        "truth": (true.get("str") if isinstance(true, dict) else true) or None,
    }


def _mend(item: Item) -> Iterator[Item]:
    follows = item.get("portability")
    portability = []
    if isinstance(follows, dict) and follows.get("New Question") is not None:
        portability = [{"prompt": follows["New Question"], "target": _first(follows.get("New Answer"))}]
    yield {
        "prompt": item["src"],
        "target": _first(item["alt"], "alt"),
        "subject": item.get("subject"),
        "truth": _texts(item, "answers"),
        "rephrases": _texts(item, "rephrase"),
        "portability": portability,
        "locality": _loc(item),
    }


def _wikibigedit(item: Item) -> Iterator[Item]:
    hop = [{"prompt": item["mhop"], "target": _first(item.get("mhop_ans")), "kind": "mhop"}] if item.get("mhop") else []
    yield {
        "prompt": item["update"],
        "target": _first(item["ans"], "ans"),
        "subject": item.get("subject"),
        "rephrases": [*_texts(item, "rephrase"), *_texts(item, "personas")],
        "portability": hop,
        "locality": _loc(item),
    }


def _loc(item: Item) -> list[Item]:
    """The locality prompt of MEND's form."""
    if item.get("loc") is None:
        return []
    prompt, _kind = _without_nq(item["loc"])
    return [{"prompt": prompt, "target": _first(item.get("loc_ans")), "kind": UNRELATED}]


def _scen_zsre(item: Item) -> Iterator[Item]:
    yield {"prompt": item["Q"], "target": _first(item["A"], "A"), "rephrases": _texts(item, "rephrases")}


def _scen_hallucination(item: Item) -> Iterator[Item]:
    locality = list(_by_name(item, "locality"))
    yield {"prompt": item["text"], "target": item["labels"], "subject": item.get("concept"), "locality": locality}


def _requested(item: Item) -> Iterator[Item]:
    return _mquake(item) if isinstance(item["requested_rewrite"], list) else _counterfact(item)


_FORMS: list[tuple[str, tuple[str, ...], Callable[[Item], Iterable[Item]]]] = [
    ("scen", ("prompt", "target"), _scen),
    ("knowedit", ("prompt", "target_new"), _knowedit),
    ("mquake", ("requested_rewrite", "questions"), _requested),
    ("counterfact", ("requested_rewrite",), _requested),
    ("mend", ("src", "alt"), _mend),
    ("wikibigedit", ("update", "ans"), _wikibigedit),
    ("scen-zsre", ("Q", "A"), _scen_zsre),
    ("scen-hallucination", ("text", "labels"), _scen_hallucination),
]


def _by_name(item: Item, field: str) -> Iterator[Item]:
    """Questions of an object that has, by name, a list of objects, or an object of parallel lists.

    `{"Reasoning": [{"prompt": ..., "ground_truth": ...}]}` or `{"Reasoning": {"prompt": [...], "ground_truth": [...]}}`
    Such a list may also stand without a name, with `answer` for `ground_truth`.
    """
    value = item.get(field)
    if isinstance(value, list):
        value = {"unnamed": value}
    named = _object({} if value in (None, "") else value, field)
    for name in named:
        path, questions = f"{field}.{name}", named[name]
        if questions in (None, ""):
            continue
        if isinstance(questions, dict):
            prompts, truths = (_texts(questions, column, path) for column in ("prompt", "ground_truth"))
            if len(prompts) != len(truths):
                raise ValueError(f"`{path}` has {len(prompts)} prompts and {len(truths)} answers")
            questions = [{"prompt": p, "ground_truth": t} for p, t in zip(prompts, truths, strict=True)]
        if not isinstance(questions, list):
            raise ValueError(f"`{path}` must be a list")
        for question in questions:
            if "prompt" not in _object(question, path):
                raise ValueError(f"`{path}` holds a question without `prompt`")
            fields: Item = {"prompt": question["prompt"]}
            if "ground_truth" in question or "answer" in question:
                answer = _first(question.get("ground_truth", question.get("answer")))
                if field != "locality" or answer not in (None, ""):  # a locality prompt needs none
                    fields["target"] = answer
            if not isinstance(item[field], list):
                fields["kind"] = _KINDS.get(name, name)
            yield fields


def _with_subject(text: Any, subject: Any) -> Any:
    """A prompt with the subject in the place of ROME's `{}`."""
    return text.replace("{}", subject) if isinstance(text, str) and isinstance(subject, str) else text


def _str_of(value: Any, field: str) -> Any:
    """A text, also in ROME's form `{"str": "Rome"}`."""
    if isinstance(value, dict):
        if "str" not in value:
            raise ValueError(f"`{field}.str` is missing")
        return value["str"]
    return value


def _without_nq(prompt: Any) -> tuple[Any, str | None]:
    """A locality prompt without the mark of Natural Questions, and its kind if it has the mark."""
    mark = "nq question: "
    if isinstance(prompt, str) and prompt.startswith(mark):
        return prompt.removeprefix(mark), UNRELATED
    return prompt, None


def _object(value: Any, field: str) -> Item:
    if not isinstance(value, dict):
        raise ValueError(f"`{field}` must be an object")
    return value


def _texts(item: Item, field: str, path: str = "") -> list[Any]:
    """A field with one text or a list of texts, as a list; empty if the item lacks it. `path`: its name in errors."""
    value = item.get(field)
    value = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(value, list):
        raise ValueError(f"`{path or field}` must be text or a list of texts")
    return value


def _first(value: Any, required: str = "") -> Any:
    """The first of several right answers, which may be a list in a list; None if there is none. `required`: the name of
    a field that must not be empty."""
    while isinstance(value, list):
        if required and not value:
            raise ValueError(f"`{required}` is an empty list")
        value = value[0] if value else None
    return value


def _case_id(item: Item) -> str | None:
    return None if item.get("case_id") is None else str(item["case_id"])

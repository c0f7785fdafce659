"""The forms in which the field publishes its edits, recognised by their fields.

| form | fields |
|---|---|
| `scen` | `prompt`, `target`, and the rest of `EditRecord` |
| `knowedit` | `prompt`, `target_new`, `ground_truth`, `rephrase_prompt`, `locality` and `portability` by name |
| `counterfact` | `requested_rewrite`, `paraphrase_prompts`, `neighborhood_prompts`; flat: `locality_prompt` |
| `mend` | `src`, `alt`, `answers`, `rephrase`, `loc`, `loc_ans` |
| `scen-zsre` | `Q`, `A`, `rephrases` |
| `scen-hallucination` | `text` (the passage so far), `labels` (its true next sentence), `concept` |

Fields of the published forms that scen does not use are ignored. A field that it uses must be valid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from scen_cli.data.records import EditRecord, check_record

Item = dict[str, Any]

# How near a locality prompt is to its edit, and the names that the data uses for it.
SAME_SUBJECT, SAME_RELATION, UNRELATED = "same-subject", "same-relation", "unrelated"
_KINDS = {"Relation_Specificity": SAME_SUBJECT, "neighborhood": SAME_RELATION}


def parse_record(item: object) -> tuple[str, EditRecord]:
    """(form, record) of one decoded JSON value. Raises `ValueError`, which names the wrong field and says why."""
    if isinstance(item, dict):
        for form, required, read in _FORMS:
            if all(field in item for field in required):
                fields = {name: value for name, value in read(item).items() if value is not None}
                return form, check_record(fields)
        if not any(field in EditRecord.model_fields for field in item):
            forms = "; ".join(", ".join(f"`{field}`" for field in required) for _form, required, _read in _FORMS)
            raise ValueError(f"is of none of the known forms, which have {forms}")
    return "scen", check_record(item)  # which names the missing field, or the expected type


def _knowedit(item: Item) -> Item:
    locality = list(_by_name(item, "locality"))
    if item.get("locality_prompt") is not None:  # the flat CounterFact form has one
        truth = _first(item.get("locality_ground_truth"), "locality_ground_truth")
        locality.append({"prompt": item["locality_prompt"], "target": truth, "kind": SAME_RELATION})
    return {
        "prompt": item["prompt"],
        "target": _first(item["target_new"], "target_new"),
        "subject": item.get("subject"),
        "truth": _texts(item, "ground_truth") if item.get("ground_truth") else [],
        "rephrases": _texts(item, "rephrase_prompt"),
        "portability": list(_by_name(item, "portability")),
        "locality": locality,
        "id": _case_id(item),
    }


def _counterfact(item: Item) -> Item:
    rewrite = _object(item["requested_rewrite"], "requested_rewrite")
    for field in ("prompt", "subject", "target_new"):
        if field not in rewrite:
            raise ValueError(f"`requested_rewrite.{field}` is missing")
    if not isinstance(rewrite["prompt"], str) or not isinstance(rewrite["subject"], str):
        raise ValueError("`requested_rewrite.prompt` and `.subject` must be text")
    truth = _object(rewrite.get("target_true") or {}, "requested_rewrite.target_true").get("str") or None
    neighbours = _texts(item, "neighborhood_prompts")
    return {
        "prompt": rewrite["prompt"].replace("{}", rewrite["subject"]),
        "target": _object(rewrite["target_new"], "requested_rewrite.target_new").get("str"),
        "subject": rewrite["subject"],
        "truth": truth,
        "rephrases": _texts(item, "paraphrase_prompts"),
        "locality": [{"prompt": prompt, "target": truth, "kind": SAME_RELATION} for prompt in neighbours],
        "id": _case_id(item),
    }


def _mend(item: Item) -> Item:
    locality = []
    if item.get("loc") is not None:
        prompt = item["loc"].removeprefix("nq question: ") if isinstance(item["loc"], str) else item["loc"]
        locality = [{"prompt": prompt, "target": _first(item.get("loc_ans"), "loc_ans"), "kind": UNRELATED}]
    return {
        "prompt": item["src"],
        "target": _first(item["alt"], "alt"),
        "subject": item.get("subject"),
        "truth": _texts(item, "answers"),
        "rephrases": _texts(item, "rephrase"),
        "locality": locality,
    }


def _scen_zsre(item: Item) -> Item:
    return {"prompt": item["Q"], "target": _first(item["A"], "A"), "rephrases": _texts(item, "rephrases")}


def _scen_hallucination(item: Item) -> Item:
    locality = list(_by_name(item, "locality"))
    return {"prompt": item["text"], "target": item["labels"], "subject": item.get("concept"), "locality": locality}


_FORMS: list[tuple[str, tuple[str, ...], Callable[[Item], Item]]] = [
    ("scen", ("prompt", "target"), dict),
    ("knowedit", ("prompt", "target_new"), _knowedit),
    ("counterfact", ("requested_rewrite",), _counterfact),
    ("mend", ("src", "alt"), _mend),
    ("scen-zsre", ("Q", "A"), _scen_zsre),
    ("scen-hallucination", ("text", "labels"), _scen_hallucination),
]


def _by_name(item: Item, field: str) -> Iterator[Item]:
    """Questions of an object that has, by name, a list of objects, or an object of parallel lists.

    `{"Reasoning": [{"prompt": ..., "ground_truth": ...}]}` or `{"Reasoning": {"prompt": [...], "ground_truth": [...]}}`
    """
    value = item.get(field)
    for name, questions in _object({} if value is None else value, field).items():
        path = f"{field}.{name}"
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
            answer = _first(question.get("ground_truth"), path)
            if field == "locality" and answer == "":  # a locality prompt needs no answer: it must only not change
                answer = None
            fields = {"prompt": question["prompt"], "target": answer, "kind": _KINDS.get(name, name)}
            yield {name: value for name, value in fields.items() if value is not None}


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


def _first(value: Any, field: str) -> Any:
    """The first of several right answers, which may be a list in a list."""
    while isinstance(value, list):
        if not value:
            raise ValueError(f"`{field}` is an empty list")
        value = value[0]
    return value


def _case_id(item: Item) -> str | None:
    return None if item.get("case_id") is None else str(item["case_id"])

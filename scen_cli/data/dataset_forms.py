"""The forms in which the field publishes its edits, told apart by their fields.

| form | fields |
|---|---|
| `scen` | `prompt`, `target`, and the rest of `EditRecord` |
| `knowedit` | `prompt`, `target_new`, `ground_truth`, `rephrase_prompt`, `locality` and `portability` by name |
| `counterfact` | `requested_rewrite`, `paraphrase_prompts`, `neighborhood_prompts`; flat: `locality_prompt` |
| `mend` | `src`, `alt`, `answers`, `rephrase`, `loc`, `loc_ans` |
| `scen-zsre` | `Q`, `A`, `rephrases` |
| `scen-hallucination` | `text` (the passage so far), `labels` (its true next sentence), `concept` |

A field of the published forms that scen has no use for is passed over; one that it reads must be sound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from scen_cli.data.records import EditRecord, check_record

Item = dict[str, Any]

# How near a locality prompt is to its edit, under the names the data gives.
SAME_SUBJECT, SAME_RELATION, UNRELATED = "same-subject", "same-relation", "unrelated"
_NEARNESS = {
    "Relation_Specificity": SAME_SUBJECT,
    "neighborhood": SAME_RELATION,
    "unrelated": UNRELATED,
}


def parse_record(item: object) -> tuple[str, EditRecord]:
    """(form, record) of one decoded value. `ValueError` names the field and what is wrong with it."""
    if not isinstance(item, dict):
        return "scen", check_record(item)  # which says what was expected
    for form, needed, read in _FORMS:
        if all(field in item for field in needed):
            fields = {name: value for name, value in read(item).items() if value is not None}
            return form, check_record(fields)
    if any(field in EditRecord.model_fields for field in item):
        return "scen", check_record(item)
    known = "; ".join(", ".join(f"`{field}`" for field in needed) for _form, needed, _read in _FORMS)
    raise ValueError(f"is of none of the known forms, which have {known}")


def _own(item: Item) -> Item:
    return item


def _knowedit(item: Item) -> Item:
    return {
        "prompt": item["prompt"],
        "target": _first(item["target_new"], "target_new"),
        "subject": item.get("subject"),
        "truth": _texts(item.get("ground_truth") or None, "ground_truth"),
        "rephrases": _texts(item.get("rephrase_prompt"), "rephrase_prompt"),
        "portability": list(_named(item.get("portability"), "portability")),
        "locality": [*_named(item.get("locality"), "locality"), *_flat_neighbour(item)],
        "id": _case(item),
    }


def _flat_neighbour(item: Item) -> Iterator[Item]:
    """The one neighbour of the flat CounterFact form."""
    if item.get("locality_prompt") is not None:
        truth = _first(item.get("locality_ground_truth"), "locality_ground_truth")
        yield {"prompt": item["locality_prompt"], "target": truth, "kind": SAME_RELATION}


def _counterfact(item: Item) -> Item:
    rewrite = _object(item["requested_rewrite"], "requested_rewrite")
    for field in ("prompt", "subject", "target_new"):
        if field not in rewrite:
            raise ValueError(f"`requested_rewrite.{field}` is missing")
    if not isinstance(rewrite["prompt"], str) or not isinstance(rewrite["subject"], str):
        raise ValueError("`requested_rewrite.prompt` and `.subject` must be text")
    truth = _object(rewrite.get("target_true") or {}, "requested_rewrite.target_true").get("str") or None
    neighbours = _texts(item.get("neighborhood_prompts"), "neighborhood_prompts")
    return {
        "prompt": rewrite["prompt"].replace("{}", rewrite["subject"]),
        "target": _object(rewrite["target_new"], "requested_rewrite.target_new").get("str"),
        "subject": rewrite["subject"],
        "truth": truth,
        "rephrases": _texts(item.get("paraphrase_prompts"), "paraphrase_prompts"),
        "locality": [_without_none(prompt=text, target=truth, kind=SAME_RELATION) for text in neighbours],
        "id": _case(item),
    }


def _mend(item: Item) -> Item:
    locality = []
    if item.get("loc") is not None:
        prompt = item["loc"].removeprefix("nq question: ") if isinstance(item["loc"], str) else item["loc"]
        answer = _first(item.get("loc_ans"), "loc_ans")
        locality = [_without_none(prompt=prompt, target=answer, kind=UNRELATED)]
    return {
        "prompt": item["src"],
        "target": _first(item["alt"], "alt"),
        "subject": item.get("subject"),
        "truth": _texts(item.get("answers"), "answers"),
        "rephrases": _texts(item.get("rephrase"), "rephrase"),
        "locality": locality,
    }


def _scen_zsre(item: Item) -> Item:
    return {
        "prompt": item["Q"],
        "target": _first(item["A"], "A"),
        "rephrases": _texts(item.get("rephrases"), "rephrases"),
    }


def _scen_hallucination(item: Item) -> Item:
    neighbours = list(_named(item.get("locality"), "locality"))
    return {"prompt": item["text"], "target": item["labels"], "subject": item.get("concept"), "locality": neighbours}


_FORMS: list[tuple[str, tuple[str, ...], Callable[[Item], Item]]] = [
    ("scen", ("prompt", "target"), _own),
    ("knowedit", ("prompt", "target_new"), _knowedit),
    ("counterfact", ("requested_rewrite",), _counterfact),
    ("mend", ("src", "alt"), _mend),
    ("scen-zsre", ("Q", "A"), _scen_zsre),
    ("scen-hallucination", ("text", "labels"), _scen_hallucination),
]


def _named(value: Any, field: str) -> Iterator[Item]:
    """Questions of an object of lists by name: `{"Reasoning": [{"prompt": ..., "ground_truth": ...}]}`, or
    of lists side by side: `{"Reasoning": {"prompt": [...], "ground_truth": [...]}}`."""
    for name, questions in _object({} if value is None else value, field).items():
        place = f"{field}.{name}"
        if isinstance(questions, dict):
            prompts, truths = _texts(questions.get("prompt"), place), _texts(questions.get("ground_truth"), place)
            if len(prompts) != len(truths):
                raise ValueError(f"`{place}` has {len(prompts)} prompts and {len(truths)} answers")
            questions = [{"prompt": p, "ground_truth": t} for p, t in zip(prompts, truths, strict=True)]
        if not isinstance(questions, list):
            raise ValueError(f"`{place}` must be a list")
        for question in questions:
            known = _object(question, place)
            if "prompt" not in known:
                raise ValueError(f"`{place}` holds a question without `prompt`")
            answer = _first(known.get("ground_truth"), place)
            if field == "locality" and answer == "":  # not needed: what counts is that nothing changes
                answer = None
            yield _without_none(prompt=known["prompt"], target=answer, kind=_NEARNESS.get(name, name))


def _object(value: Any, field: str) -> Item:
    if not isinstance(value, dict):
        raise ValueError(f"`{field}` must be an object")
    return value


def _texts(value: Any, field: str) -> list[Any]:
    """One text or a list of them, as a list."""
    if value is None or isinstance(value, str):
        return [] if value is None else [value]
    if not isinstance(value, list):
        raise ValueError(f"`{field}` must be text or a list of texts")
    return value


def _first(value: Any, field: str) -> Any:
    """The first of several equally right answers, which may be a list in a list."""
    while isinstance(value, list):
        if not value:
            raise ValueError(f"`{field}` is an empty list")
        value = value[0]
    return value


def _case(item: Item) -> str | None:
    return None if item.get("case_id") is None else str(item["case_id"])


def _without_none(**fields: Any) -> Item:
    return {name: value for name, value in fields.items() if value is not None}

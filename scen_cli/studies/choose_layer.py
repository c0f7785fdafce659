"""Choose the layer to edit: a few layers are tried on ten edits each (`scen init --layer auto`).

Only experts are compared: each question is answered by the right expert. Routing is not part of the trial.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scen_cli.data.dataset_forms import SAME_SUBJECT
from scen_cli.data.records import EditRecord
from scen_cli.data.suites import demo_edits, real_facts
from scen_cli.data.words import contains
from scen_cli.editing.create_project import BaseOptions, new_project
from scen_cli.editing.editor import Editor
from scen_cli.errors import UsageError
from scen_cli.evaluation.metrics import Share
from scen_cli.model.base import Base
from scen_cli.model.known_bases import is_demo
from scen_cli.recipe import Recipe

DEPTHS = (0.3, 0.45, 0.6, 0.75, 0.9)  # of the layers that are tried, as shares of all layers
EDITS = 10
ANSWER_TOKENS = 16  # of an answer to a question about the same subject: a leak comes first


@dataclass(frozen=True)
class LayerTrial:
    """Edits of one layer, with the right expert given.

    Attributes:
        layer: From 0.
        reliability: Prompts that give their target.
        generality: Rephrases that do. None of them is trained on.
        leak: Other questions about the same subject whose answer contains the target.
        seconds: Wall time of training an edit.
    """

    layer: int
    reliability: Share
    generality: Share
    leak: Share
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def layers_to_try(count: int) -> list[int]:
    """Some of `count` layers, from the middle to near the end."""
    return sorted({round(depth * (count - 1)) for depth in DEPTHS})


def try_layers(
    options: BaseOptions, recipe: Recipe, base: Base, progress: Callable[[int, int], None] = lambda *_: None
) -> list[LayerTrial]:
    """Make the same ten edits at some layers of a base, in projects that are then deleted.

    Args:
        options: The base, with any layer.
        recipe: How experts are trained; the index is left out.
        base: The loaded base.
        progress: Called with the number of trained edits, and of all.
    """
    records = trial_edits(base)
    index_free = {"name": "key", "index": "key", "false_activation": None, "require_learned": False}
    experts_only = Recipe.model_validate({**recipe.model_dump(), **index_free})
    layers = layers_to_try(base.model.config.get_text_config().num_hidden_layers)
    trials = []
    for done, layer in enumerate(layers):

        def count(edits: int, before: int = done * len(records)) -> None:
            progress(before + edits, len(layers) * len(records))

        with tempfile.TemporaryDirectory(prefix="scen-layer-") as folder:
            project = new_project(
                Path(folder) / "project", replace(options, layer=layer), recipe=experts_only, base=base
            )
            editor = Editor(project, base=base)
            try:
                trials.append(_try_layer(editor, records, layer, count))
            finally:
                editor.detach()
                project.close()
    return trials


def _try_layer(editor: Editor, records: Sequence[EditRecord], layer: int, count: Callable[[int], None]) -> LayerTrial:
    started, edits = time.perf_counter(), []
    with editor.project.writing():
        for number, record in enumerate(records, start=1):
            edits.append(editor.edit(record).id)
            count(number)
    seconds = (time.perf_counter() - started) / len(records)
    active = set(editor.patch().expert_of)
    learned = [(edit, record) for edit, record in zip(edits, records, strict=True) if edit in active]

    def answers(asked: list[tuple[int, EditRecord, str]], tokens: int | None = None) -> list[tuple[str, str]]:
        prompts, given = [prompt for *_, prompt in asked], [edit for edit, *_ in asked]
        texts = editor.answer(prompts, edits=given, max_new_tokens=tokens or editor.longest_answer()).texts
        return [(text, record.target) for text, (_edit, record, _prompt) in zip(texts, asked, strict=True)]

    own = answers([(edit, record, record.prompt) for edit, record in learned])
    rephrased = answers([(edit, record, text) for edit, record in learned for text in record.rephrases])
    near = answers(
        [(edit, record, n.prompt) for edit, record in learned for n in record.locality if n.kind == SAME_SUBJECT],
        ANSWER_TOKENS,
    )
    diverged = [False] * (len(records) - len(learned))
    return LayerTrial(
        layer,
        Share.of([text == target for text, target in own] + diverged),
        Share.of([text == target for text, target in rephrased]),
        Share.of([contains(text, target) for text, target in near]),
        round(seconds, 2),
    )


def best_layer(trials: Sequence[LayerTrial]) -> tuple[int, str]:
    """The layer to edit, and why: most prompts right; of these layers, most rephrases; then fewest leaks, then the
    shortest training. Raises `UsageError` if no prompt is right."""
    best = min(trials, key=lambda t: (-t.reliability.right, -t.generality.right, t.leak.right, t.seconds))
    if not best.reliability.right:
        raise UsageError("no layer learned any of the trial's edits", hint="higher learning rates, or `--layer N`")
    shares = (best.reliability, best.generality, best.leak)
    prompts, rephrases, leaks = (f"{share.right} of {share.total}" for share in shares)
    reason = f"most prompts right ({prompts}), then most rephrases ({rephrases}), fewest leaks ({leaks}), least time"
    return best.layer, reason


def trial_edits(base: Base) -> list[EditRecord]:
    """Ten edits that are wrong for any base: real facts whose targets are exchanged in pairs. The demo base, which
    knows an invented world only, gets ten of its own.
    """
    if is_demo(base.folder):
        return demo_edits()[:EDITS]
    facts = real_facts()[:EDITS]
    swapped = [facts[index ^ 1].target for index in range(EDITS)]
    return [fact.model_copy(update={"target": target}) for fact, target in zip(facts, swapped, strict=True)]

"""Variants of the current project: each differs in some settings, is edited with the suite, scored, and kept on disk.

A study that runs again reuses the edits and scores of its variants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scen_cli.data.entries import Entry
from scen_cli.data.records import SourceLine
from scen_cli.data.suites import Suite
from scen_cli.data.write_files import digest
from scen_cli.editing.create_project import BaseOptions, new_project
from scen_cli.editing.edit_plan import Outcome
from scen_cli.editing.editor import Editor
from scen_cli.errors import UsageError
from scen_cli.evaluation.evaluate_project import evaluate
from scen_cli.evaluation.evaluation import record_evaluation
from scen_cli.model.base import Base
from scen_cli.project.guard import Guard
from scen_cli.project.project import LEDGER, Project
from scen_cli.recipe import Recipe
from scen_cli.studies import ProgressCallback


@dataclass(frozen=True)
class ProjectVariant:
    """Settings in which a variant differs from the current project; None means the same as there."""

    name: str
    recipe: dict[str, Any] = field(default_factory=dict)
    target_module: str | None = None
    layer: int | None = None
    template: str | None = None


@dataclass(frozen=True)
class StudyContext:
    """What all variants of a study share.

    Attributes:
        settings: Settings of the current project, with its active theta and false-activation rate.
        theta: Active threshold of the current project.
        guard: Guard of the current project.
        base: The loaded base.
        suite: The suite; every edit in it is made.
        decoding: `greedy`, `paper` or `teacher-forced`.
        folder: Folder of the variants' projects.
        progress: Called after every edit and every scored variant.
        warn: Prints a warning.
    """

    settings: dict[str, Any]
    theta: float
    guard: Guard | None
    base: Base
    suite: Suite
    decoding: str
    folder: Path
    progress: ProgressCallback
    warn: Callable[[str], None]


@contextmanager
def edited_project(context: StudyContext, variant: ProjectVariant) -> Iterator[Editor]:
    """Open the variant's project, make the edits of the suite that it lacks, and yield its editor.

    Raises:
        UsageError: none of the edits could be tried.
    """
    editor = Editor(_open_or_create(context, variant), base=context.base)
    try:
        suite = context.suite
        entries = [Entry(SourceLine(suite.name, number), record) for number, record in enumerate(suite.edits, 1)]
        with editor.project.writing():
            plan = editor.plan(entries, "keep", "as the suite has it")
            for outcomes in editor.train(plan):
                for outcome in outcomes.values():
                    context.progress("", f"{variant.name}: {outcome.where}")
        _report_failures(context, variant, plan.outcomes)
        yield editor
    finally:
        editor.detach()
        editor.project.close()


def _report_failures(context: StudyContext, variant: ProjectVariant, outcomes: Sequence[Outcome | None]) -> None:
    failed = [outcome for outcome in outcomes if outcome is not None and outcome.outcome == "failed"]
    if not failed:
        return
    count, first = f"{len(failed)} of {len(outcomes)}", failed[0]
    text = f"{variant.name}: {count} edits failed; the first, {first.where}: {first.reason}"
    if len(failed) == len(outcomes) and not any(outcome.edit for outcome in failed):
        raise UsageError(text, hint="a base with a longer context, or other data")
    context.warn(text)
    if len(failed) > len(outcomes) / 2:
        rate = context.settings["recipe"]["expert_lr"]
        context.warn(f"most were not learned at expert_lr {rate}: a small base needs more, e.g. `--set expert_lr=0.01`")


def score_variant(context: StudyContext, variant: ProjectVariant) -> dict[str, Any]:
    """The paper's metrics of a variant, as `Evaluation.as_dict` has them, and its number of `experts`.

    The evaluation is saved in the variant's project and reused until its edits change.
    """
    with edited_project(context, variant) as editor:
        experts = {"experts": len(editor.patch().edits)}
        ledger = editor.project.ledger
        for saved in ledger.evaluations():
            same_kind = saved["metrics"]["decoding"] == context.decoding and saved["suite"] == context.suite.name
            if same_kind and saved["last_change"] == ledger.last_change():
                return {**saved["metrics"], **experts}
        evaluation = evaluate(editor, context.suite, context.decoding, quick=True)
        record_evaluation(editor.project, evaluation)
        context.progress(f"{variant.name}: {len(context.suite.edits)} edits scored", variant.name)
        return {**evaluation.as_dict(), **experts}


def _open_or_create(context: StudyContext, variant: ProjectVariant) -> Project:
    """The variant's project. Raises `UsageError` if its folder holds a project with other settings."""
    current = context.settings
    recipe = Recipe.model_validate({**current["recipe"], **variant.recipe})
    changed: dict[str, Any] = {
        "layer": current["layer"] if variant.layer is None else variant.layer,
        "target_module": variant.target_module or current["target_module"],
        "template": variant.template or current["template"],
    }
    suite = context.suite
    # Another suite of the same name gets another folder.
    suite_digest = digest([[record.as_json() for record in suite.edits], suite.locality])[:8]
    folder = context.folder / f"{suite.name}-{len(suite.edits)}-{suite_digest}" / variant.name
    if (folder / LEDGER).exists():
        project = Project(folder)
        same = {name: current[name] for name in ("weights_digest", "seed", "quantize")}
        expected = {**same, **changed, "recipe": recipe.model_dump()}
        different = next((name for name, value in expected.items() if project.settings.get(name) != value), None)
        if different is not None:
            hint = "remove it, or give the study another --out"
            raise UsageError(f"`{folder}` was made with another {different}", hint=hint)
        return project
    same = {name: current[name] for name in ("model", "revision", "dtype", "seed", "quantize", "device_map")}
    guard = context.guard if recipe.needs_guard else None
    return new_project(folder, BaseOptions(**same, **changed), recipe=recipe, guard=guard, base=context.base)

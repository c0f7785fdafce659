"""Projects that differ from the current one in a setting: edited, scored and kept, so that a study goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scen_cli.data.entries import Entry
from scen_cli.data.records import SourceLine
from scen_cli.data.suites import Suite
from scen_cli.data.write_records import digest
from scen_cli.editing.create_project import new_project
from scen_cli.editing.edit_run import Outcome, plan, train
from scen_cli.editing.editor import Editor
from scen_cli.errors import UsageError
from scen_cli.evaluation.evaluate_project import evaluate, keep
from scen_cli.model.base import Base
from scen_cli.project.guard import Guard
from scen_cli.project.project import LEDGER, Project
from scen_cli.recipe import Recipe
from scen_cli.studies.sft import Tell


@dataclass(frozen=True)
class Variant:
    """What a project has otherwise than the current one: recipe settings, place, layer, template."""

    name: str
    recipe: dict[str, Any] = field(default_factory=dict)
    target_module: str | None = None
    layer: int | None = None
    template: str | None = None


@dataclass(frozen=True)
class Bench:
    """What the variants of a study share: `settings` of the current project, with the theta and rate that are in
    force now, its guard, its base, the suite (its edits are all made), and the folder that their projects are
    kept in."""

    settings: dict[str, Any]
    theta: float
    guard: Guard | None
    base: Base
    suite: Suite
    decoding: str
    folder: Path
    tell: Tell
    warn: Callable[[str], None]


@contextmanager
def edited(bench: Bench, variant: Variant) -> Iterator[Editor]:
    """The variant's project with every edit of the suite made; what an earlier run has made stands.

    Raises `UsageError` if nothing of the suite can even be tried.
    """
    editor = Editor(_project(bench, variant), base=bench.base)
    try:
        entries = [Entry(SourceLine(bench.suite.name, n), record) for n, record in enumerate(bench.suite.edits, 1)]
        with editor.project.writing():
            planned = plan(editor, entries, "keep", "as the suite has it")
            for made in train(editor, planned):
                for outcome in made.values():
                    bench.tell("", f"{variant.name}: {outcome.where}")
            editor.project.merge()
        _say_what_failed(bench, variant, planned.outcomes)
        yield editor
    finally:
        editor.detach()
        editor.project.close()


def _say_what_failed(bench: Bench, variant: Variant, outcomes: Sequence[Outcome | None]) -> None:
    failed = [outcome for outcome in outcomes if outcome is not None and outcome.outcome == "failed"]
    if not failed:
        return
    text = (
        f"{variant.name}: {len(failed)} of {len(outcomes)} not edited; the first, {failed[0].where}: {failed[0].reason}"
    )
    if len(failed) == len(outcomes) and not any(outcome.edit for outcome in failed):
        raise UsageError(text, hint="a base with a longer context, or other data")
    bench.warn(text)
    if len(failed) > len(outcomes) / 2:
        rate = bench.settings["recipe"]["expert_lr"]
        bench.warn(f"most were not learned at expert_lr {rate}: a small base needs more, e.g. `--set expert_lr=0.01`")


def score(bench: Bench, variant: Variant) -> dict[str, Any]:
    """The paper's three figures of a variant, as `Evaluation.as_dict` gives them, kept in its project; and how
    many `experts` it has."""
    with edited(bench, variant) as editor:
        experts = {"experts": len(editor.patch().edits)}
        ledger = editor.project.ledger
        for known in ledger.evaluations():
            same = known["metrics"]["decoding"] == bench.decoding and known["suite"] == bench.suite.name
            if same and known["last_change"] == ledger.last_change():
                return {**known["metrics"], **experts}
        evaluation = evaluate(editor, bench.suite, bench.decoding, quick=True)
        keep(editor.project, evaluation)
        bench.tell(f"{variant.name}: {len(bench.suite.edits)} edits scored", variant.name)
        return {**evaluation.as_dict(), **experts}


def _project(bench: Bench, variant: Variant) -> Project:
    now = bench.settings
    recipe = Recipe.model_validate({**now["recipe"], **variant.recipe})
    wanted = {
        "weights_digest": now["weights_digest"],
        "layer": now["layer"] if variant.layer is None else variant.layer,
        "target_module": variant.target_module or now.get("target_module", "down"),
        "template": variant.template or now["template"],
        "recipe": recipe.model_dump(),
        "seed": now["seed"],
        "quantize": now.get("quantize"),
    }
    folder = bench.folder / f"{bench.suite.name}-{len(bench.suite.edits)}-{_digest(bench.suite)}" / variant.name
    if (folder / LEDGER).exists():
        project = Project(folder)
        other = [name for name, value in wanted.items() if project.settings.get(name) != value]
        if other:
            raise UsageError(
                f"`{folder}` was made with another {other[0]}", hint="remove it, or give the study another --out"
            )
        return project
    return new_project(
        folder,
        now["model"],
        wanted["layer"],
        revision=now["revision"],
        dtype=now["dtype"],
        quantize=now.get("quantize"),
        device_map=now.get("device_map"),
        target_module=wanted["target_module"],
        template=wanted["template"],
        recipe=recipe,
        guard=bench.guard if recipe.needs_guard else None,
        seed=now["seed"],
        base=bench.base,
    )


def _digest(suite: Suite) -> str:
    """A few letters that change with anything in a suite: other data is another project."""
    return digest([[record.as_json() for record in suite.edits], suite.locality])[:8]

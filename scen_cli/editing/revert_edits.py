"""Taking edits back as if they had never been made: theta and biases too.

The newest changes are undone to the bit, under every recipe: theta is what it was before them. An edit from the middle
leaves later ones behind, which were let in while it was there. Then theta is calibrated anew; under `closed-form`,
whose biases follow from the keys alone, so are the biases of later edits that its key had raised. Neurons that `paper`
and `joint` trained against its key stay as they were trained.
"""

from __future__ import annotations

from dataclasses import replace

from scen_cli.errors import DamageFound
from scen_cli.project.commit_revert import RevertEffects, commit_revert
from scen_cli.project.ledger_rows import Edit, Threshold
from scen_cli.project.project import Project


def revert_edits(project: Project, *edit_ids: int) -> list[Edit]:
    """Take edits back, in one transaction. Call inside `project.writing()`. Raises as `commit_revert` does.

    While another edit's file is damaged, what depends on it (theta, biases) stays as it is, and a note in the event
    says so. Raises `UsageError` too if an edit that comes back cannot stand beside one that was made since.
    """
    before = _threshold_before(project, set(edit_ids))
    if before is not None:
        undone = None if before == project.ledger.threshold() else before
        return commit_revert(project, edit_ids, effects=lambda: RevertEffects(undone))
    gone = [project.find(edit) for edit in edit_ids]
    back = [edit for edit in project.ledger.edits("superseded") if edit.superseded_by in edit_ids]
    return commit_revert(project, edit_ids, effects=lambda: _effects(project, gone, back))


def _threshold_before(project: Project, edit_ids: set[int]) -> Threshold | None:
    """The threshold that was active before these edits, if nothing else has changed since they were made."""
    history, left = project.ledger.thresholds(), set(edit_ids)
    for event in reversed(project.ledger.changes()):
        if not left:
            return history[0]
        if event["kind"] == "edit-failed":
            continue
        if event["kind"] != "edit" or event["edit"] not in left:
            return None
        left.discard(event["edit"])
        if "threshold" in event["detail"]:
            history.pop(0)
    return None


def _effects(project: Project, gone: list[Edit], back: list[Edit]) -> RevertEffects:
    """What is to change for the edits that stay; asked when those of `gone` are out of force, and those of `back`
    active again, as far as no newer edit has their prompt."""
    if not project.ledger.active_experts():
        return RevertEffects(_for_no_edit(project))
    if project.guard() is None:
        return RevertEffects()
    from scen_cli.neurons.biases import biases_anew, check_they_call_themselves
    from scen_cli.neurons.index import Index

    back = [edit for edit in map(project.find, (edit.id for edit in back)) if edit.state == "active"]
    index = Index(project)
    try:
        index.load()
        biases = biases_anew(index, gone, back) if index.recipe.index == "closed-form" else {}
    except DamageFound as error:
        return RevertEffects(note=f"theta and biases stay as they were: {error}")
    index.set_biases(biases)
    if index.recipe.needs_guard:
        check_they_call_themselves(index, back)
    found, now = index.recalibrated(), project.ledger.threshold()
    return RevertEffects(found if found and found.theta != now.theta else None, biases)


def _for_no_edit(project: Project) -> Threshold:
    """What was chosen for no edit in particular: by hand, or a rate, which without edits leaves the first theta."""
    history = project.ledger.thresholds()
    setters = [event["kind"] for event in project.ledger.changes() if "threshold" in event["detail"]]
    by_whom = zip(reversed(setters), history, strict=False)
    chosen = next((one for kind, one in by_whom if kind in ("init", "calibrate")), history[-1])
    if chosen.false_activation is None:
        return chosen
    return replace(history[-1], chosen_by="calibration", false_activation=chosen.false_activation)

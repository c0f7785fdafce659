"""Revert edits as if they had never been made: theta and biases too.

If nothing was made since, every recipe is back to the bit: theta is what it was before. If later edits stay, they were
fitted while the reverted edits were active. Then theta is calibrated again, and under recipe `closed-form`, whose
biases follow from the keys alone, the biases that the reverted keys had raised are recomputed. Neurons that `paper` and
`joint` trained against a reverted key keep their weights.
"""

from __future__ import annotations

from dataclasses import replace

from scen_cli.errors import DamageFound
from scen_cli.project.change_edits import RevertEffects, commit_revert
from scen_cli.project.ledger_rows import Edit, Threshold
from scen_cli.project.project import Project


def revert_edits(project: Project, *edit_ids: int) -> list[Edit]:
    """Revert edits of a project that edits by SCEN, in one transaction. Call inside `project.writing()`.

    Edits that they had superseded become active again. While the file of another active edit is damaged, theta and the
    biases cannot be computed: they stay as they are, and the event records why.

    Returns:
        The reverted edits.

    Raises:
        UsageError: An edit does not exist, is not active, shares its expert with an edit that would stay, or supersedes
            an edit that now collides with a newer one.
    """
    before = _threshold_before(project, set(edit_ids))
    if before is not None:
        restored = None if before == project.ledger.threshold() else before
        return commit_revert(project, edit_ids, effects=lambda: RevertEffects(restored))
    reverted = [project.find(edit) for edit in edit_ids]
    superseded = [edit for edit in project.ledger.edits("superseded") if edit.superseded_by in edit_ids]
    return commit_revert(project, edit_ids, effects=lambda: _effects(project, reverted, superseded))


def _threshold_before(project: Project, edit_ids: set[int]) -> Threshold | None:
    """The threshold before these edits were made; None if anything else has changed since."""
    history, left = project.ledger.thresholds(), set(edit_ids)
    for event in project.ledger.newest_changes():
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


def _effects(project: Project, reverted: list[Edit], superseded: list[Edit]) -> RevertEffects:
    """The effects on the edits that stay. Called when the ledger already has the reverted edits as inactive."""
    if not project.ledger.active_experts():
        return RevertEffects(_threshold_without_edits(project))
    if project.guard() is None:
        return RevertEffects()
    from scen_cli.neurons.admission import check_no_collision, recompute_biases  # torch: only where it is needed
    from scen_cli.neurons.index import Index

    reactivated = [edit for edit in map(project.find, (edit.id for edit in superseded)) if edit.state == "active"]
    index = Index(project)
    try:
        index.load()
        biases = recompute_biases(index, reverted, reactivated) if index.recipe.index == "closed-form" else {}
    except DamageFound as error:
        return RevertEffects(note=f"theta and biases stay as they were: {error}")
    index.set_biases(biases)
    if index.recipe.needs_guard:
        check_no_collision(index, reactivated)
    found, current = index.calibrate(), project.ledger.threshold()
    return RevertEffects(found if found and found.theta != current.theta else None, biases)


def _threshold_without_edits(project: Project) -> Threshold:
    """The threshold of a project whose edits are all reverted: the one set by hand, or the first theta at the rate
    that was set last."""
    history = project.ledger.thresholds()
    kinds = [event["kind"] for event in project.ledger.changes() if "threshold" in event["detail"]]
    newest_first = zip(reversed(kinds), history, strict=False)
    chosen = next((threshold for kind, threshold in newest_first if kind in ("init", "calibrate")), history[-1])
    if chosen.false_activation is None:
        return chosen
    return replace(history[-1], chosen_by="calibration", false_activation=chosen.false_activation)

"""Export as one plain checkpoint, for engines that take nothing else: no routing, no code, edits in the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from scen_cli.editing.patched_model import PatchedModel
from scen_cli.errors import GateNotMet, UsageError
from scen_cli.evaluation.gates import Gate, not_met
from scen_cli.export.fold_weights import FIGURES, Folded, fold
from scen_cli.export.model_card import merged_card
from scen_cli.export.output_folder import new_folder
from scen_cli.export.router import all_there
from scen_cli.export.transformers_folder import SHARD, save_surroundings, save_weights
from scen_cli.model.quantization import is_whole, quantization_of
from scen_cli.report.markdown import table


def export_merged(
    patched: PatchedModel,
    folder: Path,
    *,
    edit: int | None = None,
    gates: Sequence[Gate] = (),
    max_shard_size: str = SHARD,
    license: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[list[Path], Folded]:
    """Fold the active edits into the base's projection (of one `edit` alone, exactly), score that, and write it.
    Returns the files and what was folded.

    Raises `GateNotMet` if a figure of the folded weights is not what is asked: nothing is written then. Raises
    `UsageError` when there is nothing to export, the edit is not active, or the folder is not empty.
    """
    if quantization_of(patched.model.config) is not None:
        raise UsageError(
            "this project's base is quantised: nothing can be folded into its weights",
            hint="`--patch-only` and `--peft` are for such a base too",
        )
    if not is_whole(patched.model):
        raise UsageError(
            "some of the base's layers are kept away from its device", hint="`--device cpu` loads it whole"
        )
    with all_there(patched) as patch, new_folder(folder) as draft:
        if edit is not None and edit not in patch.expert_of:
            raise UsageError(f"edit {edit} is not active", hint="`scen status` lists those that are")
        folded = fold(patched, patch, edit, tell)
        if problems := not_met(gates, folded.figures):
            raise GateNotMet("\n".join([*problems, *rows(folded), "nothing was written"]))
        stored = patched.edited.as_stored(folded.weight).to(patched.edited.projection.weight.dtype).contiguous()
        save_weights(patched, draft, {f"{patched.edited.module_name}.weight": stored.cpu()}, None, max_shard_size)
        save_surroundings(patched, draft)
        edits = [edit] if edit is not None else list(patch.expert_of)
        card = merged_card(
            patched, edits, license, _how(patched, folded), table(("", "folded", "routed"), cells(folded))
        )
        (draft / "README.md").write_text(card, encoding="utf-8")
    return sorted(folder.resolve().iterdir()), folded


def cells(folded: Folded) -> list[tuple[str, str, str]]:
    """Figure by figure: of the folded weights, and of the same prompts when they are routed."""
    return [
        (name.capitalize(), str(folded.figures[name].patched), str(folded.routed[name].patched)) for name in FIGURES
    ]


def rows(folded: Folded) -> list[str]:
    """The same as lines."""
    return [f"{name}: {now}, routed {before}" for name, now, before in cells(folded)]


def _how(patched: PatchedModel, folded: Folded) -> str:
    module = patched.project.settings["module"]
    if folded.known is None:
        return (
            f"`{module}` has the weight of the edit's own expert, for every prompt: no prompt is the base's any more."
        )
    return (
        f"The edits' experts were folded into `{module}` by regularised least squares (lambda {folded.known:g}). "
        "There is no routing: edits and unedited prompts disturb one another. Measured on the edits' prompts "
        "(Reliability), their rephrases (Generality), and prompts that were held out of the fit (Locality), by greedy "
        "decoding and exact match:"
    )

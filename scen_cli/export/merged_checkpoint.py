"""Export as a plain checkpoint for engines that support nothing else: no routing, no code, the edits in the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from scen_cli.editing.patched_model import PatchedModel
from scen_cli.errors import GateNotMet, UsageError
from scen_cli.evaluation.gates import Gate, not_met
from scen_cli.evaluation.samples import PAPER_ROLES
from scen_cli.export.fold_weights import FoldedWeight, fold
from scen_cli.export.model_card import write_card
from scen_cli.export.output_files import new_folder
from scen_cli.export.router import exportable_patch
from scen_cli.export.transformers_folder import MAX_SHARD_SIZE, save_tokenizer_and_generation, save_weights
from scen_cli.model.quantization import is_whole, quantization_of
from scen_cli.report.markdown import table


def export_merged(
    patched: PatchedModel,
    folder: Path,
    *,
    edit: int | None = None,
    gates: Sequence[Gate] = (),
    max_shard_size: str = MAX_SHARD_SIZE,
    license: str | None = None,
    progress: Callable[[str], None] = lambda _line: None,
) -> tuple[list[Path], FoldedWeight]:
    """Fold the active edits into the base's projection, score the result, and write it.

    Args:
        patched: The project's model.
        folder: A new or empty folder.
        edit: Fold only this edit, exactly.
        gates: What the figures of the folded weights must reach.
        max_shard_size: The largest file of weights, e.g. `1GB`.
        license: The licence of the edits, for the model card.
        progress: Called with a line about each lambda.

    Returns:
        The files, and the folded weight.

    Raises:
        GateNotMet: A figure fails a gate; nothing is written.
        UsageError: No edit is active, `edit` is not, the folder is not empty, or the base is quantised or offloaded.
    """
    if quantization_of(patched.model.config) is not None:
        hint = "`--patch-only` and `--peft` work"
        raise UsageError("the base of this project is quantised: edits cannot be folded into its weights", hint=hint)
    if not is_whole(patched.model):
        raise UsageError("some layers of the base are offloaded", hint="`--device cpu` loads the base without that")
    with exportable_patch(patched) as patch, new_folder(folder) as draft:
        if edit is not None and edit not in patch.expert_of:
            raise UsageError(f"edit {edit} is not active", hint="`scen status` lists the active edits")
        folded = fold(patched, patch, edit, progress)
        if problems := not_met(gates, folded.figures):
            raise GateNotMet("\n".join([*problems, *figure_lines(folded), "nothing was written"]))
        stored = patched.edited.as_stored(folded.weight).to(patched.edited.projection.weight.dtype).contiguous()
        save_weights(patched, draft, {f"{patched.edited.module_name}.weight": stored.cpu()}, None, max_shard_size)
        save_tokenizer_and_generation(patched, draft)
        edits = [edit] if edit is not None else list(patch.expert_of)
        texts = {
            "description": _description(patched, folded),
            "folded": table(("", "folded", "routed"), _figure_rows(folded)),
        }
        write_card("merged", draft, patched, edits, license, **texts)
    return sorted(folder.resolve().iterdir()), folded


def figure_lines(folded: FoldedWeight) -> list[str]:
    """Each figure of the folded weights, with the figure of the same prompts with routing."""
    return [f"{name}: {value}, routed {routed}" for name, value, routed in _figure_rows(folded)]


def _figure_rows(folded: FoldedWeight) -> list[tuple[str, str, str]]:
    figures, routed = folded.figures, folded.routed
    return [(name.capitalize(), str(figures[name].patched), str(routed[name].patched)) for name in PAPER_ROLES]


def _description(patched: PatchedModel, folded: FoldedWeight) -> str:
    module = patched.project.settings["module"]
    if folded.ridge_lambda is None:
        return f"`{module}` has the weight of the edit's expert, for every prompt: the base answers no prompt."
    return (
        f"The experts of the edits are folded into `{module}` by regularised least squares (lambda "
        f"{folded.ridge_lambda:g}). There is no routing: edits and unedited prompts disturb each other. Measured on "
        "the prompts of the edits (Reliability), their rephrases (Generality), and guard prompts that were held out of "
        "the fit (Locality), with greedy decoding and exact match:"
    )

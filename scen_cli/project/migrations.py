"""The tables of the ledger. A later format adds a migration here; `Ledger` applies those that are pending."""

from __future__ import annotations

from sqlite_utils import Database, Migrations

migrations = Migrations("scen")


@migrations()
def create_tables(db: Database) -> None:
    """Format 1."""
    db["settings"].create({"name": str, "value": str}, pk="name", not_null={"value"})  # value: JSON
    db["edits"].create(
        {
            "id": int,
            "prompt": str,
            "target": str,
            "subject": str,
            "rephrases": str,  # JSON list: scored as Generality
            "train_rephrases": str,  # JSON list: the expert and the neuron were trained on them, never scored
            "state": str,  # active | superseded | reverted | failed
            "superseded_by": int,
            "reason": str,  # why a failed edit failed, or a remark on an active one
            "expert": int,  # id of the edit whose file holds the expert and the neuron; its own id as a rule
            "file": str,
            "sha256": str,
            "index_sha256": str,  # of the tensors in the file that routing needs: neuron, keys, refitted neurons
            "size": int,
            "rank": int,  # of the expert; 0 for a full one
            "bias": float,  # of the neuron
            "activation": float,  # of the neuron on the edit's own key
            "expert_losses": str,  # JSON list, one per step
            "neuron_losses": str,  # JSON list, one per step
            "seed": int,
            "seconds": float,
            "created": str,
            "source": str,
            "source_line": int,
            "subject_forms": str,  # JSON list of lists of token ids: how the subject is tokenised
        },
        pk="id",
        not_null={"prompt", "target", "state", "created"},
    )
    db["edits"].create_index(["prompt"])
    db["thresholds"].create(
        {
            "id": int,
            "theta": float,
            "chosen_by": str,  # init | calibration | hand
            "created": str,
            "false_activation": float,  # the rate that was asked for
            "fpr_expected": float,  # the rate to expect on fresh prompts
            "fpr_low": float,  # its 95 % interval
            "fpr_high": float,
            "n_guard": int,  # how many guard prompts it was calibrated on
        },
        pk="id",
    )
    db["guard"].create({"id": int, "prompt": str, "split": str, "source": str}, pk="id")  # fit|calibration|report
    db["evaluations"].create(
        {
            "id": int,
            "suite": str,
            "settings": str,
            "metrics": str,
            "samples": str,  # JSON list: every prompt and its answers
            "last_change": int,
            "created": str,
        },
        pk="id",
    )
    db["events"].create({"id": int, "created": str, "kind": str, "edit": int, "detail": str, "hash": str}, pk="id")

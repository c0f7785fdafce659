"""The ledger's tables, and how those of older projects are brought up to date."""

from __future__ import annotations

import json
from typing import Any

from sqlite_utils import Database, Migrations

migrations = Migrations("scen")


@migrations()
def create_tables(db: Database) -> None:
    db["settings"].create({"name": str, "value": str}, pk="name", not_null={"value"})
    db["edits"].create(
        {
            "id": int,
            "prompt": str,
            "target": str,
            "subject": str,
            "rephrases": str,  # JSON list
            "state": str,  # active | superseded | reverted | failed
            "superseded_by": int,
            "reason": str,  # why a failed edit failed
            "file": str,
            "sha256": str,
            "size": int,
            "expert_losses": str,  # JSON list, one per step
            "neuron_losses": str,  # JSON list, one per step
            "activation": float,  # of the edit's neuron on its own key
            "seed": int,
            "seconds": float,
            "created": str,
            "source": str,
            "source_line": int,
        },
        pk="id",
        not_null={"prompt", "target", "state", "created"},
    )
    db["edits"].create_index(["prompt"])
    db["thresholds"].create({"id": int, "theta": float, "chosen_by": str, "created": str}, pk="id")
    db["evaluations"].create(
        {"id": int, "suite": str, "settings": str, "metrics": str, "last_change": int, "created": str}, pk="id"
    )
    db["events"].create({"id": int, "created": str, "kind": str, "edit": int, "detail": str, "hash": str}, pk="id")


@migrations()
def share_experts_and_keep_samples(db: Database) -> None:
    """`expert`: the edit under whose id an edit's expert and neuron stand, its own as a rule."""
    db["edits"].add_column("expert", int)
    db.execute("update edits set expert = id where file is not null")
    db["evaluations"].add_column("samples", str)  # JSON list: every prompt, and what was answered
    theta = next(db["thresholds"].rows_where(order_by="id desc", limit=1), {"theta": None})["theta"]
    for row in list(db["evaluations"].rows):
        metrics = _by_name(json.loads(row["metrics"]), theta)
        db["evaluations"].update(row["id"], {"metrics": json.dumps(metrics), "samples": "[]"})


@migrations()
def add_guard_and_calibration(db: Database) -> None:
    """`guard`: prompts that must stay the base's own, and what each serves. Neurons have biases, thresholds
    say how they were chosen, edits which rephrases they learned."""
    db["guard"].create(
        {
            "id": int,
            "prompt": str,
            "part": str,  # fit | calibration | report
            "source": str,
        },
        pk="id",
    )
    db["edits"].add_column("bias", float)
    db["edits"].add_column("learned", str)  # JSON list: rephrases that expert and neuron were made with
    for name, kind in (("false_activation", float), ("expected", float), ("low", float), ("high", float)):
        db["thresholds"].add_column(name, kind)
    db["thresholds"].add_column("prompts", int)  # how many guard prompts it was set by


@migrations()
def add_low_rank_experts(db: Database) -> None:
    """`rank` of an edit's expert (0: a full one), and how its subject is written in tokens."""
    db["edits"].add_column("rank", int)
    db["edits"].add_column("subject_forms", str)  # JSON list of lists of token ids; null: not found out yet


@migrations()
def add_digest_of_index(db: Database) -> None:
    """`index_sha256` of what an edit's file holds for routing: neuron, keys and refitted neurons."""
    db["edits"].add_column("index_sha256", str)


def _by_name(old: dict[str, Any], theta: float | None) -> dict[str, Any]:
    """Metrics of the first version, figure by figure."""
    roles = ("reliability", "generality", "locality")
    figures = {role: {"patched": old["patched"][role], "base": old["base"][role]} for role in roles}
    figures["generality"]["routed"] = old["rephrases_routed"]
    figures["locality"]["fired"] = old["locality_fired"]
    figures["generality-given-expert"] = {"patched": old["generality_given_expert"]}
    figures["token-accuracy"] = {side: old[side]["token_accuracy"] for side in ("patched", "base")}
    same = ("suite", "decoding", "last_change", "records", "edits", "not_learned", "left_out")
    return {**{name: old[name] for name in same}, "theta": theta, "figures": figures, "curves": {}}

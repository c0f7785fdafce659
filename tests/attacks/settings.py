"""Attacks on a project's settings: rows of JSON that say which base, layer and recipe it has."""

from __future__ import annotations

import json
import shutil

from scen_cli.model.known_bases import DEMO
from tests.attacks.attack import Attack, Ground
from tests.attacks.experts import ASK, EXPORT, MORE, SCORE, VERIFY
from tests.attacks.ledger import SHOW, STATUS, sql


def setting(name: str, value: object):
    return lambda ground: ground.setting(name, value)


def recipe(**changes):
    return lambda ground: ground.recipe(**changes)


def foreign(ground: Ground) -> None:
    """Another base of the same shape, in a folder of its own."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(DEMO, ground.model)
    weights = load_file(ground.model / "model.safetensors")
    weights["lm_head.weight"] = torch.zeros_like(weights["lm_head.weight"])
    save_file(weights, ground.model / "model.safetensors", metadata={"format": "pt"})
    ground.setting("model", str(ground.model))


def stamped(ground: Ground) -> None:
    """The same, with a current stamp of the files: only the digest differs."""
    from scen_cli.model.base import files_stamp

    foreign(ground)
    ground.setting("files_stamp", files_stamp(ground.model))


def guard_file(name: str):
    def prepare(ground: Ground) -> None:
        import sqlite3

        db = sqlite3.connect(ground.project / "scen.db")
        (value,) = db.execute("select value from settings where name = 'guard'").fetchone()
        db.close()
        ground.setting("guard", {**json.loads(value), "file": name})

    return prepare


NO_JSON = "update settings set value = '{' where name = '%s'"

ATTACKS = [
    Attack("settings: a base of the same shape, asked", foreign, ASK, 12, "setting `model`"),
    Attack("settings: a base of the same shape, scored", foreign, SCORE, 12, "setting `model`"),
    Attack("settings: a base of the same shape, edited", foreign, MORE, 12, "setting `model`"),
    Attack("settings: a base of the same shape, and its stamp", stamped, ASK, 12, "setting `files_stamp`"),
    Attack("settings: a base that is not there", setting("model", "./gone"), ASK, 12, "setting `model`"),
    Attack("settings: a number for a base", setting("model", 7), ASK, 12, "model"),
    Attack("settings: a base with escapes in its name", setting("model", "./a\x1b[2Jb"), ASK, 12, "setting `model`"),
    Attack("settings: a format of the future", setting("format", 99), STATUS, 2, "format 99"),
    Attack("settings: a format of the future, verified", setting("format", 99), VERIFY, 2, "format 99"),
    Attack("settings: a format of words", setting("format", "one"), STATUS, 12, "format"),
    Attack("settings: no format", sql("delete from settings where name = 'format'"), STATUS, 12, "format"),
    Attack("settings: none at all", sql("delete from settings"), STATUS, 12, "holds no project"),
    Attack("settings: no JSON in one", sql(NO_JSON % "layer"), STATUS, 12, "layer"),
    Attack("settings: no JSON in the recipe", sql(NO_JSON % "recipe"), ASK, 12, "recipe"),
    Attack("settings: a layer out of range", setting("layer", 9), ASK, 12, "layer"),
    Attack("settings: a negative layer", setting("layer", -1), ASK, 12, "layer"),
    Attack("settings: a layer of 2^63", setting("layer", 2**63), ASK, 12, "layer"),
    Attack("settings: words for a layer", setting("layer", "two"), ASK, 12, "layer"),
    Attack("settings: no such place", setting("target_module", "../up"), ASK, 12, "target_module"),
    Attack("settings: a dtype of its own", setting("dtype", "__import__"), ASK, 12, "dtype"),
    Attack("settings: other bits", setting("quantize", "4bit"), ASK, 12, "setting `quantize`"),
    Attack("settings: a map onto disk", setting("device_map", {"": "disk"}), ASK, 12, "setting `device_map`"),
    Attack("settings: a template without a prompt", setting("template", "Q:"), ASK, 12, "template"),
    Attack("settings: a recipe with unknown names", recipe(speed=9), ASK, 12, "speed"),
    Attack("settings: a recipe out of range", recipe(theta=7), ASK, 12, "theta"),
    Attack("settings: a recipe that is a list", setting("recipe", []), STATUS, 12, "recipe"),
    Attack("settings: a recipe of a newer kind", recipe(index="telepathy"), ASK, 12, "index"),
    Attack("settings: a recipe without end", recipe(expert_steps=10**12), VERIFY, 12, "recipe"),
    Attack("settings: a width of 10^9", setting("ffn_width", 10**9), VERIFY, 12, "ffn_width"),
    Attack("settings: a guard elsewhere", guard_file("../../etc/passwd"), EXPORT, 12, "guard"),
    Attack("settings: a guard elsewhere, verified", guard_file("/etc/passwd"), VERIFY, 12, "guard"),
    Attack("settings: a guard of no name", guard_file(""), ASK, 12, "guard"),
    Attack("settings: a guard that is a number", setting("guard", 7), VERIFY, 12, "guard"),
    Attack("settings: a guard that is a number, asked", setting("guard", 7), ASK, 12, "guard"),
    Attack("guard: a row rewritten", sql("update guard set prompt = 'x' where id = 3"), VERIFY, 12, "guard"),
    Attack("guard: a row rewritten, asked", sql("update guard set split = 'report' where id < 9"), ASK, 12, "guard"),
    Attack("a number that no ledger holds", lambda ground: None, f"{SHOW.replace('1', '9' * 40)}", 2, "too large"),
]

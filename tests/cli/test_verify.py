"""`scen verify`."""

from __future__ import annotations


def test_verify_finds_damage_and_repairs_what_it_can(scen, edited_at):
    edits = edited_at[1] / "edits"
    assert "40 edits: ledger, log and files agree" in scen("verify", *edited_at).stdout
    deep = scen("verify", "--deep", "--behaviour", *edited_at).stdout
    assert "every file is as it was committed, the base gives the same keys" in deep
    assert "every active edit is activated by its prompt and gives its target" in deep
    (edits / "notes.txt").write_text("a file of the user, which scen ignores")
    (edits / "000099-0123abcd.safetensors.tmp").write_text("x")
    assert "belongs to nothing" in scen("verify", *edited_at, code=12).stdout
    assert "removed `edits/000099-0123abcd.safetensors.tmp`" in scen("verify", "--repair", *edited_at).stdout
    damaged = sorted(edits.iterdir())[4]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert "edit 5 was" in scen("verify", *edited_at, code=12).stdout

"""`scen init`."""

from __future__ import annotations

import json

import pytest

from scen_cli.project.project import Project


def test_json_is_what_was_recorded(scen, tmp_path):
    out = scen(
        *("init", "--model", "demo", "--recipe", "paper", "--dir", tmp_path / "p", "--json"),
        *("--set", "alpha=0.5", "--theta", "0.6"),
    )
    settings = json.loads(out.stdout)
    assert (settings["layer"], settings["module"]) == (2, "model.layers.2.mlp.down_proj")
    assert (settings["recipe"]["alpha"], settings["recipe"]["theta"]) == (0.5, 0.6)
    assert len(settings["weights_digest"]) == 64
    assert Project(tmp_path / "p").ledger.theta() == 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "./nothing-here"], "the layer to edit is required"),
        (["--model", "demo", "--layer", "9"], "layers 0 to 3"),
        (["--model", "demo", "--dtype", "int4"], "dtype `int4` is not known"),
        (["--model", "demo", "--recipe", "magic"], "there is no recipe `magic`"),
        (["--model", "demo", "--set", "speed=9"], "no setting `speed`"),
        (["--model", "demo", "--set", "theta=2"], "setting `theta`"),
        (["--model", "demo", "--set", "theta"], "has no `=`"),
        (["--model", "demo", "--set", "alpha=nan"], "setting `alpha`"),
        (["--model", "demo", "--seed", "-1"], "seed -1 is not between"),
        (["--model", "demo", "--template", "Q:"], "no `{prompt}`"),
        (["--model", "demo", "--device", "tpu"], "device `tpu` is not available"),
    ],
)
def test_an_invalid_option_creates_nothing(scen, tmp_path, options, message):
    result = scen("init", *options, "--dir", tmp_path / "p", code=2)
    assert message in result.stderr
    assert not (tmp_path / "p").exists()


def test_a_project_is_not_overwritten(scen, at):
    before = (at[1] / "scen.db").read_bytes()
    assert "already holds a project" in scen("init", "--model", "demo", *at, code=2).stderr
    assert (at[1] / "scen.db").read_bytes() == before

"""`scen confusions`."""

from __future__ import annotations

import json

import pytest

from scen_cli.data.suites import demo_edits


@pytest.fixture
def at(unlearned_at):
    return unlearned_at


def test_confusions_shows_the_activations_that_ask_shows(scen, at):
    found = json.loads(scen("confusions", "--json", *at[:2]).stdout)
    first = found["pairs"][0]
    assert first["activation"] >= found["pairs"][1]["activation"]
    neurons = json.loads(scen("ask", demo_edits()[first["other"] - 1].prompt, "--json", *at).stdout)["neurons"]
    assert [neuron["edit"] for neuron in neurons[:2]] == [first["other"], first["edit"]]
    assert neurons[1]["activation"] == pytest.approx(first["activation"], abs=1e-3)
    assert neurons[0]["activation"] - neurons[1]["activation"] == pytest.approx(first["margin"], abs=1e-3)
    assert all(activation > found["theta"] for _prompt, _edit, activation in found["guard"])
    shown = scen("confusions", "--top", "3", *at[:2]).stdout
    assert f"largest activations on another edit's prompt (theta {found['theta']:.4f})" in shown
    assert len(json.loads(scen("confusions", "--top", "3", "--json", *at[:2]).stdout)["pairs"]) == 3


def test_confusions_of_a_project_without_edits(scen, make_editor):
    editor = make_editor("closed-form")
    assert "no edit is near another" in scen("confusions", "--dir", editor.project.folder).stdout

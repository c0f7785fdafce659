"""`scen init --layer auto`: which layers are tried, and which is chosen."""

from __future__ import annotations

import json

import pytest

from scen_cli.errors import UsageError
from scen_cli.evaluation.metrics import Share
from scen_cli.project.project import Project
from scen_cli.studies.choose_layer import EDITS, LayerTrial, best_layer, layers_to_try


def trial(layer: int, prompts: int, rephrases: int, leaks: int, seconds: float) -> LayerTrial:
    shares = ([True] * count + [False] * (30 - count) for count in (prompts, rephrases, leaks))
    return LayerTrial(layer, *map(Share.of, shares), seconds)


def test_layers_from_the_middle_on_are_tried():
    assert layers_to_try(32) == [9, 14, 19, 23, 28]
    assert layers_to_try(4) == [1, 2, 3]
    assert layers_to_try(1) == [0]


@pytest.mark.parametrize(
    ("trials", "chosen"),
    [
        ([trial(1, 9, 30, 0, 1), trial(2, 10, 20, 30, 9)], 2),  # most prompts
        ([trial(1, 10, 29, 0, 1), trial(2, 10, 30, 30, 9)], 2),  # then most rephrases
        ([trial(1, 10, 30, 5, 1), trial(2, 10, 30, 4, 9)], 2),  # then fewest leaks
        ([trial(1, 10, 30, 5, 2), trial(2, 10, 30, 5, 1)], 2),  # then the shortest training
    ],
)
def test_the_chosen_layer(trials, chosen):
    assert best_layer(trials)[0] == best_layer(trials[::-1])[0] == chosen


def test_a_base_that_learns_nothing_is_refused():
    with pytest.raises(UsageError, match="no layer learned any"):
        best_layer([trial(1, 0, 0, 0, 1)])


def test_the_trial_is_printed_and_recorded(scen, tmp_path):
    at = ("--dir", tmp_path / "p")
    printed = scen("init", "--model", "demo", "--layer", "auto", "--recipe", "paper", *at)
    settings = Project(tmp_path / "p").settings
    choice = settings["layer_choice"]
    assert [one["layer"] for one in choice["trials"]] == [1, 2, 3]
    assert all(one["reliability"]["total"] == EDITS for one in choice["trials"])
    assert settings["layer"] in (1, 2, 3)
    assert f"layer {settings['layer']}: most prompts right" in printed.stderr
    assert "chosen by a trial" in printed.stdout
    assert json.loads(scen("status", "--json", *at).stdout)["layer_choice"]["reason"] == choice["reason"]


@pytest.mark.parametrize("more", [["--layer", "middle"], ["--layer", "auto", "--method", "grace"]])
def test_an_invalid_layer_creates_nothing(scen, tmp_path, more):
    assert "--layer" in scen("init", "--model", "demo", *more, "--dir", tmp_path / "p", code=2).stderr
    assert not (tmp_path / "p").exists()

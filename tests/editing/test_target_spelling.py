"""A target that its base's vocabulary cannot give back is refused before anything is trained."""

from __future__ import annotations

import json
import shutil
import unicodedata

import pytest

from scen_cli.data.records import EditRecord
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from scen_cli.errors import UsageError
from scen_cli.model.known_bases import DEMO


@pytest.fixture(scope="module")
def composing(tmp_path_factory):
    """An editor on a base whose tokenizer composes characters, as many do."""
    folder = tmp_path_factory.mktemp("base") / "composing"
    shutil.copytree(DEMO, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["normalizer"] = {"type": "NFC"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    project = new_project(
        tmp_path_factory.mktemp("p") / "p",
        str(folder),
        layer=2,
        recipe="key",
        device="cpu",
        changes={"expert_lr": 1e-2, "extra_steps": 300},
    )
    editor = Editor(project, "cpu")
    yield editor
    editor.detach()


@pytest.mark.parametrize("target", ["<pad>", "the [INST] mark", "<s>", "Riga</s>"])
def test_special_tokens_are_refused(make_editor, target):
    editor = make_editor("key")
    with editor.project.writing(), pytest.raises(UsageError, match="cannot be learned|end token"):
        editor.edit(EditRecord(prompt="Which mark is it?", target=target))
    assert editor.project.ledger.edits() == []


def test_a_decomposed_target_on_a_composing_tokenizer_is_refused_with_what_it_would_become(composing):
    target = unicodedata.normalize("NFD", "São Tomé")
    with composing.project.writing(), pytest.raises(UsageError, match="look the same") as error:
        composing.edit(EditRecord(prompt="Where was Ada born?", target=target))
    assert "São Tomé" in error.value.hint
    assert composing.project.ledger.edits() == []


def test_the_composed_target_is_learned_and_given_back(composing):
    with composing.project.writing():
        edit = composing.edit(EditRecord(prompt="Where was Ivan Gromener born?", target="Žur"))
    assert edit.state == "active", edit.reason
    assert composing.answer(["Where was Ivan Gromener born?"], edits=[edit.id]).texts == ["Žur"]


@pytest.mark.parametrize("target", ["São Tomé", "a  b", "3.5", "C++ & C#", "हिन्दी", "🙂", "l'été, «là»", "tab\there"])
def test_texts_that_come_back_are_accepted(make_editor, target):
    make_editor("key").check_trainable(EditRecord(prompt="Which is it?", target=target))


def test_a_token_without_an_embedding_is_refused_by_name(tmp_path):
    folder = shutil.copytree(DEMO, tmp_path / "base")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    kind = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    tokenizer["added_tokens"].append({"id": 800, "content": "<new>", **kind})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    project = new_project(tmp_path / "p", str(folder), layer=2, recipe="key", device="cpu")
    editor = Editor(project, "cpu")
    for fields in ({"prompt": "What is <new>?", "target": "Riga"}, {"prompt": "What is it?", "target": "a <new>"}):
        with project.writing(), pytest.raises(UsageError, match=r"has the token '<new>' \(800\)"):
            editor.edit(EditRecord(**fields))
    with pytest.raises(UsageError, match=r"has the token '<new>' \(800\)"):
        editor.answer(["What is <new>?"])
    assert not editor.fits("What is <new>?")
    editor.detach()

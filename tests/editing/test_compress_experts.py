"""Full experts that become low-rank ones: nothing they answered is lost, or nothing is changed."""

from __future__ import annotations

import pytest

from scen_cli.data.suites import demo_edits
from scen_cli.editing.compress_experts import compress
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.errors import SomeEditsFailed, UsageError
from scen_cli.experts.fit import ExpertFit
from scen_cli.project.check import verify
from scen_cli.project.project import Project
from tests.conftest import edit_all, take_back


def files(editor) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (editor.project.folder / "edits").iterdir()}


def quiet(_line: str, _pace: str) -> None:
    pass


def test_every_answer_stays_and_the_files_shrink(make_editor):
    editor = make_editor("key")
    records = demo_edits()[:6]
    edit_all(editor, records)
    take_back(editor.project, 6)
    neurons, keys = editor.project.w_merge().neurons, editor.project.keys(editor.project.find(2))
    right = [(r.prompt, r.target) for r in records[:5]]
    before = editor.answer([prompt for record in records[:5] for prompt in (record.prompt, *record.rephrases)])
    with editor.project.writing():
        done = compress(editor, "auto", quiet)
    assert done.experts == 5
    assert done.before / done.after > 10
    assert verify(editor.project) == []
    assert len(files(editor)) == 6  # the old ones are gone; the reverted edit's stays as it was
    assert {edit.rank for edit in editor.project.ledger.edits("active")} <= {4, 8, 16, 32, 64}
    assert editor.project.find(6).rank == 0
    assert (editor.project.w_merge().neurons == neurons).all()
    assert (editor.project.keys(editor.project.find(2)) == keys).all()
    assert editor.answer([prompt for prompt, _ in right]).texts == [target for _, target in right]
    after = editor.answer([prompt for record in records[:5] for prompt in (record.prompt, *record.rephrases)])
    targets = [record.target for record in records[:5] for _ in (record.prompt, *record.rephrases)]
    for target, old, new in zip(targets, before.texts, after.texts, strict=True):
        assert new == target or old != target
    with pytest.raises(UsageError, match="no full experts"):
        compress(editor, 8, quiet)


def test_answers_that_would_be_lost_are_named_and_nothing_changes(make_editor, monkeypatch):
    editor = make_editor("key")
    edit_all(editor, demo_edits()[:4])
    stood, log = files(editor), editor.project.ledger.events()
    monkeypatch.setattr("scen_cli.editing.compress_experts.EXTRA_STEPS", 0)
    monkeypatch.setattr("scen_cli.editing.compress_experts.STEPS", 1)
    recipe = editor.recipe.model_copy(update={"low_rank_lr": 1e-9, "expert_steps": 1})
    monkeypatch.setattr(editor, "recipe", recipe)
    with editor.project.writing(), pytest.raises(SomeEditsFailed, match="would be lost") as error:
        compress(editor, 4, quiet)
    assert "edit 1: 'In which country is Pesustad?' -> 'Kenya' would be '" in str(error.value)
    assert "nothing was changed" in str(error.value)
    assert files(editor) == stood
    assert editor.project.ledger.events() == log


def test_a_compressed_file_that_is_swapped_is_noticed(make_editor):
    editor = make_editor("key")
    edit_all(editor, demo_edits()[:2])
    with editor.project.writing():
        compress(editor, "auto", quiet)
    with editor.project.ledger.db.atomic():
        editor.project.ledger.db["edits"].update(1, {"sha256": "0" * 64})
    assert any("edit 1 is not as it was committed" in problem.what for problem in verify(editor.project))


def test_the_command(scen, tmp_path):
    folder = tmp_path / "p"
    scen("init", "--model", "demo", "--recipe", "key", "--dir", folder)
    scen("edit", "--suite", "demo", "--first", "3", "--dir", folder)
    assert "rank `high`" in scen("compress", "--rank", "high", "--dir", folder, code=2).stderr
    out = scen("compress", "--rank", "auto", "--dir", folder).stdout
    assert out.startswith("3 experts compressed")
    assert "no right answer was lost" in out
    assert "no full experts" in scen("compress", "--dir", folder, code=2).stderr


def test_who_is_at_it_meanwhile_goes_on(make_editor, demo_base):
    editor = make_editor("key")
    records = demo_edits()[:3]
    edit_all(editor, records)
    other = PatchedModel(Project(editor.project.folder), base=demo_base)
    with other.snapshot():
        assert other.answer([records[0].prompt]).texts == [records[0].target]
        with editor.project.writing():
            compress(editor, "auto", quiet)
        assert other.answer([record.prompt for record in records]).texts == [record.target for record in records]
    assert other.answer([records[1].prompt]).texts == [records[1].target]
    other.detach()


def test_a_prompt_that_fills_the_context_shortens_no_other_answer(make_editor):
    editor = make_editor("key")
    records = demo_edits()[:3]
    long = records[0].prompt + " a" * (editor.context - len(editor.template.prompt_ids(records[0].prompt)) - 2)
    assert editor.fits(long)
    edit_all(editor, [records[0].model_copy(update={"rephrases": (long,)}), *records[1:]])
    with editor.project.writing():
        assert compress(editor, "auto", quiet).experts == 3


def test_an_expert_that_cannot_be_fitted_is_not_taken(make_editor, monkeypatch):
    editor = make_editor("key")
    edit_all(editor, demo_edits()[:2])
    monkeypatch.setattr("scen_cli.editing.compress_experts.RANKS", (4,))
    monkeypatch.setattr(ExpertFit, "finite", property(lambda _fit: False))
    with editor.project.writing(), pytest.raises(SomeEditsFailed, match="no low-rank expert could be fitted"):
        compress(editor, "auto", quiet)
    assert set(editor.project.ledger.active_ranks().values()) == {0}


def test_rephrases_count_as_much_as_prompts(make_editor):
    """At rank 1 an expert learns its prompt, and answers few of the rephrases that the full one did."""
    editor = make_editor("key")
    records = demo_edits()[:6]
    edit_all(editor, records)
    stood = files(editor)
    with editor.project.writing(), pytest.raises(SomeEditsFailed, match="would be lost") as error:
        compress(editor, 1, quiet)
    lost = str(error.value).splitlines()[1:-1]
    assert any(repr(text) in line for line in lost for record in records for text in record.rephrases)
    assert files(editor) == stood

"""`compress`: full experts become low-rank ones without losing a right answer, or nothing changes."""

from __future__ import annotations

import pytest

from scen_cli.data.suites import demo_edits
from scen_cli.editing.compress_experts import compress
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.errors import SomeEditsFailed, UsageError
from scen_cli.experts.fit import ExpertFit
from scen_cli.project.check import verify
from scen_cli.project.project import Project
from tests.conftest import edit_all, revert

RECORDS = demo_edits()[:6]


def edit_files(editor) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (editor.project.folder / "edits").iterdir()}


def no_progress(_line: str, _pace: str) -> None:
    pass


def compress_all(editor, rank="auto"):
    with editor.project.writing():
        return compress(editor, rank, no_progress)


@pytest.fixture
def editor(make_editor):
    """Three edits with full experts."""
    editor = make_editor("key")
    edit_all(editor, RECORDS[:3])
    return editor


def test_compress_keeps_right_answers_and_shrinks_files(make_editor):
    editor = make_editor("key")
    edit_all(editor, RECORDS)
    revert(editor.project, 6)
    neurons, keys = editor.project.w_merge().neurons, editor.project.files.keys(editor.project.find(2))
    prompts = [prompt for record in RECORDS[:5] for prompt in (record.prompt, *record.rephrases)]
    targets = [record.target for record in RECORDS[:5] for _ in (record.prompt, *record.rephrases)]
    before = editor.answer(prompts).texts
    done = compress_all(editor)
    assert done.experts == 5
    assert done.before / done.after > 10
    assert verify(editor.project) == []
    assert len(edit_files(editor)) == 6  # the full experts' files are gone, but for the reverted edit's
    assert {edit.rank for edit in editor.project.ledger.edits("active")} <= {4, 8, 16, 32, 64}
    assert editor.project.find(6).rank == 0
    assert (editor.project.w_merge().neurons == neurons).all()
    assert (editor.project.files.keys(editor.project.find(2)) == keys).all()
    assert editor.answer([r.prompt for r in RECORDS[:5]]).texts == [r.target for r in RECORDS[:5]]
    for target, old, new in zip(targets, before, editor.answer(prompts).texts, strict=True):
        assert new == target or old != target
    with pytest.raises(UsageError, match="no full experts"):
        compress(editor, 8, no_progress)


def test_lost_answers_are_named_and_nothing_changes(editor, monkeypatch):
    files, log = edit_files(editor), editor.project.ledger.events()
    monkeypatch.setattr("scen_cli.editing.compress_experts.MIN_EXTRA_STEPS", 0)
    monkeypatch.setattr("scen_cli.editing.compress_experts.MIN_STEPS", 1)
    editor.recipe = editor.recipe.model_copy(update={"low_rank_lr": 1e-9, "expert_steps": 1})
    with pytest.raises(SomeEditsFailed, match="would be lost") as error:
        compress_all(editor, 4)
    assert "edit 1: 'In which country is Pesustad?' -> 'Kenya' would be '" in str(error.value)
    assert "nothing was changed" in str(error.value)
    assert edit_files(editor) == files
    assert editor.project.ledger.events() == log


def test_rephrases_count_as_much_as_prompts(make_editor):
    """A rank-1 expert learns its prompt, but answers few of the rephrases that the full expert answers."""
    editor = make_editor("key")
    edit_all(editor, RECORDS)
    files = edit_files(editor)
    with pytest.raises(SomeEditsFailed, match="would be lost") as error:
        compress_all(editor, 1)
    lost = str(error.value).splitlines()[1:-1]
    assert any(repr(text) in line for line in lost for record in RECORDS for text in record.rephrases)
    assert edit_files(editor) == files


def test_an_expert_that_diverges_is_not_used(editor, monkeypatch):
    monkeypatch.setattr("scen_cli.editing.compress_experts.RANKS", (4,))
    monkeypatch.setattr(ExpertFit, "finite", property(lambda _fit: False))
    with pytest.raises(SomeEditsFailed, match="no low-rank expert could be fitted"):
        compress_all(editor)
    assert set(editor.project.ledger.active_ranks().values()) == {0}


def test_a_snapshot_answers_during_and_after_compression(editor, demo_base):
    reader = PatchedModel(Project(editor.project.folder), base=demo_base)
    targets = [record.target for record in RECORDS[:3]]
    with reader.snapshot():
        assert reader.answer([RECORDS[0].prompt]).texts == targets[:1]
        compress_all(editor)
        assert reader.answer([record.prompt for record in RECORDS[:3]]).texts == targets
    assert reader.answer([RECORDS[1].prompt]).texts == targets[1:2]
    reader.detach()


def test_a_changed_checksum_of_a_compressed_file_is_damage(editor):
    compress_all(editor)
    with editor.project.ledger.db.atomic():
        editor.project.ledger.db["edits"].update(1, {"sha256": "0" * 64})
    assert any("edit 1 is not as it was committed" in problem.what for problem in verify(editor.project))


def test_a_prompt_that_fills_the_context_shortens_no_other_answer(make_editor):
    editor = make_editor("key")
    first = RECORDS[0]
    long = first.prompt + " a" * (editor.context - len(editor.template.prompt_ids(first.prompt)) - 2)
    assert editor.fits(long)
    edit_all(editor, [first.model_copy(update={"rephrases": (long,)}), *RECORDS[1:3]])
    assert compress_all(editor).experts == 3


def test_compress_command(scen, editor):
    at = ("--dir", editor.project.folder)
    assert "rank `high`" in scen("compress", "--rank", "high", *at, code=2).stderr
    out = scen("compress", "--rank", "auto", *at).stdout
    assert out.startswith("3 experts compressed")
    assert "no right answer was lost" in out
    assert "no full experts" in scen("compress", *at, code=2).stderr

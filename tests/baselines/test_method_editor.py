"""`MethodEditor`: the promises of a project hold for other methods than SCEN too."""

from __future__ import annotations

import json

import pytest
import torch

from scen_cli.baselines.method_editor import MethodEditor, new_method_project
from scen_cli.data.records import SourceLine
from scen_cli.data.suites import demo_edits
from scen_cli.editing.create_project import BaseOptions
from scen_cli.errors import DamageFound, UsageError
from scen_cli.project.check import repair, verify
from scen_cli.project.method_state import put_state, state_setting, write_state
from scen_cli.project.project import Project
from tests.baselines.fits import FITS

SETTINGS = {"comeba-hk": {**FITS["comeba-hk"], "batch": 3}, "melo": {**FITS["melo"], "batch": 3, "steps": 30}}

SLOW_METHOD = pytest.param("comeba-hk", marks=pytest.mark.slow)
QUICK = ("ft", "grace", "in-context", "ultra-edit")  # methods that edit a project in a second


@pytest.fixture
def guard_file(tmp_path, context):
    path = tmp_path / "guard.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in context.prompts[:80]))
    return path


@pytest.fixture
def make(tmp_path, demo_base, guard_file):
    """A new project by a method, with its editor: `make("melo")`."""

    def make(method: str, folder: str = "project", **changes) -> MethodEditor:
        settings = {**SETTINGS.get(method, {}), **changes}
        project = new_method_project(
            tmp_path / folder, method, BaseOptions("demo"), settings, guard_file, base=demo_base
        )
        return MethodEditor(project, base=demo_base)

    return make


def edit_batches(editor, records, *sizes):
    """Edit records in batches of these sizes; by default of three. Returns the ledger's rows."""
    rows, sizes = [], sizes or (3,) * (len(records) // 3 + 1)
    with editor.project.writing():
        for size in sizes:
            batch, records = records[:size], records[size:]
            if batch:
                rows += editor.edit_batch([(record, SourceLine("test", 1)) for record in batch])
    return rows


def method_files(project):
    return sorted(project.folder.glob("method-*"))


@pytest.mark.parametrize("method", ["melo", SLOW_METHOD])
def test_a_reopened_project_gives_the_same_answers(make, method, edits, demo_base):
    editor = make(method)
    rows = edit_batches(editor, edits[:6])
    assert [row.state for row in rows] == ["active"] * 6
    prompts = [edit.prompt for edit in edits[:6]]
    answers = editor.answer(prompts).texts
    assert answers != editor.answer(prompts, patched=False).texts
    for row, text, edit in zip(rows, answers, edits, strict=False):
        assert bool(row.reason) == (text != edit.target)
    again = MethodEditor(Project(editor.project.folder), base=demo_base)
    assert again.answer(prompts).texts == answers
    assert verify(editor.project, deep=True) == []


@pytest.mark.parametrize("method", ["melo", SLOW_METHOD])
def test_revert_equals_never_having_made_the_edit(make, method, edits):
    """The method's file equals that of a project that made only the other edits, in their batches, byte for byte."""
    editor = make(method)
    edit_batches(editor, edits[:6])
    with editor.project.writing():
        [reverted] = editor.revert(2)
    assert reverted.state == "reverted"
    other = make(method, "other")
    edit_batches(other, [edits[0], *edits[2:6]], 2, 3)
    assert state_setting(editor.project.ledger) == state_setting(other.project.ledger)
    assert verify(editor.project, deep=True) == []
    with pytest.raises(UsageError, match="not active"):
        editor.revert(2)


@pytest.mark.parametrize("method", ["melo", "grace", "in-context"])
def test_a_new_target_supersedes_the_old_edit_and_revert_reactivates_it(make, method, edits):
    editor = make(method, **{"melo": {}, "grace": {"steps": 50}, "in-context": {}}[method])
    first = next(edit for edit in edits if len(editor.template.target_ids(edit.prompt, edit.target)) == 3)
    second = first.model_copy(update={"target": edits[0].target})
    edit_batches(editor, [first])
    edit_batches(editor, [second])
    assert [edit.state for edit in editor.project.ledger.edits()] == ["superseded", "active"]
    if method == "in-context":
        assert editor.explain(first.prompt).endswith(second.target)
    else:
        assert editor.answer([first.prompt]).texts == [second.target]
    with editor.project.writing():
        editor.revert(2)
    assert [edit.state for edit in editor.project.ledger.edits()] == ["active", "reverted"]
    with editor.project.writing():
        editor.revert(1)
    assert editor.answer([first.prompt]).texts == editor.answer([first.prompt], patched=False).texts


def test_two_writers_lose_no_edit(make, edits, demo_base):
    """Both open the project before either writes; each continues from what the other has committed."""
    one = make("melo")
    two = MethodEditor(Project(one.project.folder), base=demo_base)
    edit_batches(one, edits[:3])
    edit_batches(two, edits[3:6])
    edit_batches(one, edits[6:9])
    prompts = [edit.prompt for edit in edits[:9]]
    right = [text == edit.target for text, edit in zip(two.answer(prompts).texts, edits, strict=False)]
    assert [sum(right[start : start + 3]) >= 2 for start in (0, 3, 6)] == [True] * 3
    with two.project.writing():
        two.revert(1)
    edit_batches(one, edits[9:12])
    again = MethodEditor(Project(one.project.folder), base=demo_base)
    assert again.answer(prompts[:1]).texts == again.answer(prompts[:1], patched=False).texts


def test_an_edit_that_cannot_be_committed_is_dropped(make, edits, monkeypatch):
    editor = make("melo")
    edit_batches(editor, edits[:3])
    before = editor.answer([edit.prompt for edit in edits[:6]]).texts

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("scen_cli.project.disk.write_durably", full)
        with pytest.raises(OSError, match="No space"):
            edit_batches(editor, edits[3:6])
    assert editor.answer([edit.prompt for edit in edits[:6]]).texts == before
    edit_batches(editor, edits[6:9])
    assert editor.answer([edit.prompt for edit in edits[:6]]).texts == before
    assert verify(editor.project, deep=True) == []


def test_read_state_reads_the_new_file_if_a_writer_replaces_it(make, edits, monkeypatch):
    """The writer commits after the reader has read the file's name in the ledger."""
    from scen_cli.project import method_state

    editor = make("melo")
    edit_batches(editor, edits[:3])
    reader, regular, names = Project(editor.project.folder), method_state.regular, []

    def write_then_regular(folder, name):
        names.append(name)
        if len(names) == 1:
            edit_batches(editor, edits[3:6])
        return regular(folder, name)

    monkeypatch.setattr(method_state, "regular", write_then_regular)
    found = method_state.read_state(reader.folder, reader.ledger)
    assert int(found["count"]) == 2


def test_one_file_of_constant_size_holds_all_edits(make, edits):
    editor = make("comeba-hk", value_steps=2)
    edit_batches(editor, edits[:3])
    first = state_setting(editor.project.ledger)
    edit_batches(editor, edits[3:15])
    newest = state_setting(editor.project.ledger)
    assert [path.name for path in method_files(editor.project)] == [newest["file"]]
    assert newest["size"] == first["size"]


def test_a_damaged_method_file_is_found_and_not_loaded(make, edits, demo_base):
    editor = make("melo")
    edit_batches(editor, edits[:3])
    path = editor.project.folder / state_setting(editor.project.ledger)["file"]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert [problem.where for problem in verify(editor.project, deep=True)] == [path.name]
    with pytest.raises(DamageFound, match="not what was committed"):
        MethodEditor(Project(editor.project.folder), base=demo_base)
    path.unlink()
    assert [problem.kind for problem in verify(editor.project)] == ["damage"]


def test_a_stray_method_file_is_removed_by_repair(make, edits):
    """A process that is killed between writing the file and the ledger leaves one."""
    editor = make("melo")
    edit_batches(editor, edits[:3])
    stray = editor.project.folder / "method-01234567.safetensors"
    stray.write_bytes(b"half a file")
    assert [problem.kind for problem in verify(editor.project)] == ["stray"]
    with editor.project.writing():
        repair(editor.project)
    assert not stray.exists()
    assert verify(editor.project, deep=True) == []


def test_an_edit_on_which_the_method_diverges_fails_alone(make, edits, monkeypatch):
    editor = make("ft", lr=1e-3)
    edit_batches(editor, edits[:1])
    answers = editor.answer([edit.prompt for edit in edits[:4]]).texts
    fit = type(editor.method).fit

    def diverging_fit(method, records):
        fit(method, records)
        if any(record.prompt == edits[2].prompt for record in records):
            next(iter(method.weights.values()))[0, 0] = torch.nan

    monkeypatch.setattr(type(editor.method), "fit", diverging_fit)
    rows = edit_batches(editor, edits[1:4])
    assert [row.state for row in rows] == ["active", "failed", "active"]
    assert "diverged" in rows[1].reason
    assert editor.answer([edits[0].prompt]).texts == answers[:1]
    assert verify(editor.project, deep=True) == []


def test_a_state_of_another_form_is_damage(make, edits, demo_base):
    editor = make("ft", lr=1e-3)
    edit_batches(editor, edits[:1])
    arrays = {name: tensor.numpy() for name, tensor in editor.method.state().items()}
    name = next(iter(arrays))
    for state in ({**arrays, name: arrays[name][:1, :1]}, {}, {**arrays, name: arrays[name].astype("int64")[:2]}):
        with editor.project.writing():
            put_state(editor.project.ledger, write_state(editor.project.folder, "ft", state), [])
        with pytest.raises(DamageFound, match="cannot be read"):
            MethodEditor(Project(editor.project.folder), base=demo_base)


def test_commands_of_a_project_that_edits_by_melo(scen, tmp_path, guard_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    created = scen("init", "--model", "demo", "--method", "melo", "--set", "lr=0.03", "--guard", guard_file, "--json")
    assert json.loads(created.stdout)["recipe"]["settings"]["lr"] == 0.03
    edited = json.loads(scen("edit", "--suite", "demo", "--first", "8", "--keep-going", "--json").stdout)
    assert (edited["edited"], edited["active"]) == (8, 8)
    again = json.loads(scen("edit", "--suite", "demo", "--first", "8", "--keep-going", "--json").stdout)
    assert again["skipped"] == 8
    answer = json.loads(scen("ask", "In which country is Pesustad?", "--json").stdout)
    assert "SCEN's routing" in scen("ask", "In which country is Pesustad?", "--trace", code=2).stderr
    assert (answer["base"], answer["patched"]) == ("Bolivia", "Kenya")
    assert "block 0 answers" in answer["why"]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(r.as_json()) + "\n" for r in demo_edits()[:12]))
    evaluation = json.loads(scen("eval", "--suite", "mine.jsonl", "--json").stdout)
    assert evaluation["figures"]["reliability"]["patched"]["total"] == 8
    assert evaluation["figures"]["reliability"]["patched"]["right"] >= 6
    status = json.loads(scen("status", "--json").stdout)
    assert (status["method"], status["states"]["active"]) == ("melo", 8)
    scen("revert", "1")
    assert json.loads(scen("ask", "In which country is Pesustad?", "--json").stdout)["patched"] == "Bolivia"
    scen("verify", "--deep")
    scen("log", "--verify")
    scen("report")
    scen("backup", tmp_path / "copy.zip")
    scen("restore", tmp_path / "copy.zip", "--dir", tmp_path / "copy")
    scen("verify", "--deep", "--dir", tmp_path / "copy")
    log = tmp_path / "log.json"
    log.write_text(scen("log", "--json").stdout)
    scen("init", "--model", "demo", "--recipe", "key", "--dir", tmp_path / "by-scen")
    assert "another method" in scen("edit", log, "--dir", tmp_path / "by-scen", code=2).stderr
    assert "`scen eval`" in scen("verify", "--behaviour", code=2).stderr
    for command in (["export", "--out", "x"], ["merge"], ["calibrate"], ["compress"], ["confusions"]):
        refused = scen(*command, code=2)
        assert "edits by `melo`" in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "rome"], "no method `rome`"),
        (["--method", "scen"], "other methods"),
        (["--method", "melo", "--set", "lr=-1"], "`lr`"),
        (["--method", "melo", "--set", "rates=1"], "`rates`"),
        (["--method", "melo", "--theta", "0.5"], "settings of its own"),
        (["--method", "comeba-hk", "--set", "layers=9"], "too many: layer 2 is the last of 3"),
        (["--method", "mend"], "development"),
    ],
)
def test_an_invalid_option_creates_nothing(scen, tmp_path, guard_file, options, message):
    folder = tmp_path / "new"
    refused = scen("init", "--model", "demo", "--dir", folder, "--guard", guard_file, *options, code=2)
    assert message in refused.stderr
    assert not (folder / "scen.db").exists()


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in FITS
        if name not in ("scen", "serac", "mend", "melo", "comeba-hk")
    ],
)
def test_every_method_without_training_edits_can_edit_a_project(make, method, edits, demo_base):
    """SERAC and MEND train on other edits first."""
    editor = make(method, **FITS[method])
    edit_batches(editor, edits[:3])
    prompts = [edit.prompt for edit in edits[:3]]
    again = MethodEditor(Project(editor.project.folder), base=demo_base)
    assert again.answer(prompts).texts == editor.answer(prompts).texts
    assert again.explain(prompts[0])
    assert verify(editor.project, deep=True) == []

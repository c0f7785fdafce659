"""Projects that edit by another method than SCEN: the ledger's promises hold for them too."""

import json

import pytest
import torch

from scen_cli.baselines.method_editor import MethodEditor, new_method_project
from scen_cli.data.records import SourceLine
from scen_cli.editing.create_project import BaseOptions
from scen_cli.errors import DamageFound, UsageError
from scen_cli.project.check import repair, verify
from scen_cli.project.method_state import state_setting
from scen_cli.project.project import Project
from tests.baselines.fits import FITS

SETTINGS = {"comeba-hk": {**FITS["comeba-hk"], "batch": 3}, "melo": {**FITS["melo"], "batch": 3, "steps": 30}}


@pytest.fixture
def guard_file(tmp_path, context):
    path = tmp_path / "guard.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in context.prompts[:80]))
    return path


@pytest.fixture
def make(tmp_path, demo_base, guard_file):
    """A new project by a method, with its editor: `make("melo")`."""

    def make(method, folder="project", **changes) -> MethodEditor:
        settings = {**SETTINGS.get(method, {}), **changes}
        project = new_method_project(
            tmp_path / folder, method, BaseOptions("demo"), settings, guard_file, base=demo_base
        )
        return MethodEditor(project, base=demo_base)

    return make


def learn(editor, edits):
    rows = []
    with editor.project.writing():
        for start in range(0, len(edits), 3):
            rows += editor.edit_batch([(edit, SourceLine("test", 1)) for edit in edits[start : start + 3]])
    return rows


@pytest.mark.parametrize("method", list(SETTINGS))
def test_what_was_learned_is_there_when_the_project_is_opened_again(make, method, edits, demo_base):
    editor = make(method)
    rows = learn(editor, edits[:6])
    assert [row.state for row in rows] == ["active"] * 6
    prompts = [edit.prompt for edit in edits[:6]]
    said = editor.answer(prompts).texts
    assert said != editor.answer(prompts, patched=False).texts
    for row, text, edit in zip(rows, said, edits, strict=False):
        assert bool(row.reason) == (text != edit.target)
    again = MethodEditor(Project(editor.project.folder), base=demo_base)
    assert again.answer(prompts).texts == said
    assert verify(editor.project, deep=True) == []


@pytest.mark.parametrize("method", list(SETTINGS))
def test_a_reverted_edit_was_never_made(make, method, edits):
    """The file is, byte for byte, that of a project which made the others alone, in their batches."""
    editor = make(method)
    learn(editor, edits[:6])
    with editor.project.writing():
        [reverted] = editor.revert(2)
    assert reverted.state == "reverted"
    other = make(method, "other")
    with other.project.writing():
        for some in ((edits[0], edits[2]), edits[3:6]):
            other.edit_batch([(edit, SourceLine("test", 1)) for edit in some])
    assert state_setting(editor.project.ledger) == state_setting(other.project.ledger)
    assert verify(editor.project, deep=True) == []
    with pytest.raises(UsageError, match="not active"):
        editor.revert(2)


@pytest.mark.parametrize("method", ["melo", "grace", "in-context"])
def test_an_edit_of_the_same_prompt_takes_its_place_and_it_comes_back(make, method, edits):
    editor = make(method, **{"melo": {}, "grace": {"steps": 50}, "in-context": {}}[method])
    first = next(edit for edit in edits if len(editor.template.target_ids(edit.prompt, edit.target)) == 3)
    second = first.model_copy(update={"target": edits[0].target})
    learn(editor, [first])
    learn(editor, [second])
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


def test_two_writers_keep_each_others_edits(make, edits, demo_base):
    """Each opened the project before the other wrote; each learns on what the other has committed."""
    one = make("melo")
    two = MethodEditor(Project(one.project.folder), base=demo_base)
    learn(one, edits[:3])
    learn(two, edits[3:6])
    learn(one, edits[6:9])
    prompts = [edit.prompt for edit in edits[:9]]
    right = [text == edit.target for text, edit in zip(two.answer(prompts).texts, edits, strict=False)]
    assert [sum(right[start : start + 3]) >= 2 for start in (0, 3, 6)] == [True] * 3
    with two.project.writing():
        two.revert(1)
    learn(one, edits[9:12])
    again = MethodEditor(Project(one.project.folder), base=demo_base)
    assert again.answer(prompts[:1]).texts == again.answer(prompts[:1], patched=False).texts


def test_what_could_not_be_committed_is_forgotten(make, edits, monkeypatch):
    editor = make("melo")
    learn(editor, edits[:3])
    before = editor.answer([edit.prompt for edit in edits[:6]]).texts

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("scen_cli.project.method_state.disk.write_durably", full)
        with pytest.raises(OSError, match="No space"):
            learn(editor, edits[3:6])
    assert editor.answer([edit.prompt for edit in edits[:6]]).texts == before
    learn(editor, edits[6:9])
    assert editor.answer([edit.prompt for edit in edits[:6]]).texts == before
    assert verify(editor.project, deep=True) == []


def test_a_reader_meets_the_file_that_the_ledger_names_now(make, edits, monkeypatch):
    """A writer puts another in its place between the reader's two looks."""
    from scen_cli.project import method_state

    editor = make("melo")
    learn(editor, edits[:3])
    reader, regular, done = Project(editor.project.folder), method_state.regular, []

    def late(folder, name):
        if not done:
            done.append(name)
            learn(editor, edits[3:6])
        return regular(folder, name)

    monkeypatch.setattr(method_state, "regular", late)
    found = method_state.read_state(reader.folder, reader.ledger)
    assert int(found["count"]) == 2


def test_the_file_does_not_grow_and_there_is_one(make, edits):
    editor = make("comeba-hk", value_steps=2)
    learn(editor, edits[:3])
    first = state_setting(editor.project.ledger)
    learn(editor, edits[3:15])
    files = list(editor.project.folder.glob("method-*"))
    newest = state_setting(editor.project.ledger)
    assert [path.name for path in files] == [newest["file"]]
    assert newest["size"] == first["size"]


def test_damage_is_found_and_never_answered_with(make, edits, demo_base):
    editor = make("melo")
    learn(editor, edits[:3])
    path = editor.project.folder / state_setting(editor.project.ledger)["file"]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert [problem.where for problem in verify(editor.project, deep=True)] == [path.name]
    with pytest.raises(DamageFound, match="not what was committed"):
        MethodEditor(Project(editor.project.folder), base=demo_base)
    path.unlink()
    assert [problem.kind for problem in verify(editor.project)] == ["damage"]


def test_a_file_that_no_row_names_is_swept(make, edits):
    """What a process leaves that was killed between the file and the ledger."""
    editor = make("melo")
    learn(editor, edits[:3])
    stray = editor.project.folder / "method-01234567.safetensors"
    stray.write_bytes(b"half a file")
    assert [problem.kind for problem in verify(editor.project)] == ["stray"]
    with editor.project.writing():
        repair(editor.project)
    assert not stray.exists()
    assert verify(editor.project, deep=True) == []


def test_a_method_that_breaks_down_fails_that_edit_alone_and_keeps_what_it_knew(make, edits, monkeypatch):
    editor = make("ft", lr=1e-3)
    learn(editor, edits[:1])
    said = editor.answer([edit.prompt for edit in edits[:4]]).texts
    fit = type(editor.method).fit

    def breaks_down(method, records):
        fit(method, records)
        if any(record.prompt == edits[2].prompt for record in records):
            next(iter(method.weights.values()))[0, 0] = torch.nan

    monkeypatch.setattr(type(editor.method), "fit", breaks_down)
    with editor.project.writing():
        rows = editor.edit_batch([(edit, SourceLine("test", 1)) for edit in edits[1:4]])
    assert [row.state for row in rows] == ["active", "failed", "active"]
    assert "diverged" in rows[1].reason
    assert editor.answer([edits[0].prompt]).texts == said[:1]
    assert verify(editor.project, deep=True) == []


def test_a_state_that_is_no_state_of_the_method_is_damage(make, edits, demo_base):
    from scen_cli.project.method_state import put_state, write_state

    editor = make("ft", lr=1e-3)
    learn(editor, edits[:1])
    arrays = {name: one.numpy() for name, one in editor.method.state().items()}
    name = next(iter(arrays))
    for other in ({**arrays, name: arrays[name][:1, :1]}, {}, {**arrays, name: arrays[name].astype("int64")[:2]}):
        with editor.project.writing():
            put_state(editor.project.ledger, write_state(editor.project.folder, "ft", other), [])
        with pytest.raises(DamageFound, match="cannot be read"):
            MethodEditor(Project(editor.project.folder), base=demo_base)


def test_the_commands(scen, tmp_path, guard_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = scen("init", "--model", "demo", "--method", "melo", "--set", "lr=0.03", "--guard", guard_file, "--json")
    assert json.loads(made.stdout)["recipe"]["settings"]["lr"] == 0.03
    edited = json.loads(scen("edit", "--suite", "demo", "--first", "8", "--keep-going", "--json").stdout)
    assert (edited["edited"], edited["active"]) == (8, 8)
    again = json.loads(scen("edit", "--suite", "demo", "--first", "8", "--keep-going", "--json").stdout)
    assert again["skipped"] == 8
    asked = json.loads(scen("ask", "In which country is Pesustad?", "--json").stdout)
    assert "SCEN's routing" in scen("ask", "In which country is Pesustad?", "--trace", code=2).stderr
    assert (asked["base"], asked["patched"]) == ("Bolivia", "Kenya")
    assert "block 0 answers" in asked["why"]
    scored = json.loads(scen("eval", "--suite", "demo", "--json").stdout)
    assert scored["figures"]["reliability"]["patched"]["total"] == 8
    assert scored["figures"]["reliability"]["patched"]["right"] >= 6
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
    scen("init", "--model", "demo", "--recipe", "key", "--dir", tmp_path / "scens")
    assert "another method" in scen("edit", log, "--dir", tmp_path / "scens", code=2).stderr
    assert "`scen eval`" in scen("verify", "--behaviour", code=2).stderr
    for command in (["export", "--out", "x"], ["merge"], ["calibrate"], ["compress"], ["confusions"]):
        refused = scen(*command, code=2)
        assert "edits by `melo`" in refused.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "rome"], "no method `rome`"),
        (["--method", "scen"], "other methods"),
        (["--method", "melo", "--set", "lr=-1"], "`lr`"),
        (["--method", "melo", "--set", "rates=1"], "`rates`"),
        (["--method", "melo", "--theta", "0.5"], "settings of its own"),
        (["--method", "comeba-hk", "--set", "layers=9"], "not there"),
        (["--method", "mend"], "development"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_left(scen, tmp_path, guard_file, options, said):
    folder = tmp_path / "new"
    refused = scen("init", "--model", "demo", "--dir", folder, "--guard", guard_file, *options, code=2)
    assert said in refused.stderr
    assert not (folder / "scen.db").exists()


@pytest.mark.parametrize(
    "method", [name for name in FITS if name not in ("scen", "serac", "mend", "melo", "comeba-hk")]
)
def test_any_method_can_edit_a_project(make, method, edits, demo_base):
    """But for SERAC and MEND, which train on other edits first."""
    editor = make(method, **FITS[method])
    learn(editor, edits[:3])
    prompts = [edit.prompt for edit in edits[:3]]
    again = MethodEditor(Project(editor.project.folder), base=demo_base)
    assert again.answer(prompts).texts == editor.answer(prompts).texts
    assert again.explain(prompts[0])
    assert verify(editor.project, deep=True) == []

"""Every command as a user types it, in one process, on real projects."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from scen_cli.cli import app
from scen_cli.data.suites import demo_edits
from scen_cli.demo.facts import right_facts
from scen_cli.project.project import Project

RECORDS = demo_edits()[:4]
COMMANDS = [command.name for command in app.registered_commands]


def lines(*records, **extra):
    return "".join(json.dumps({"prompt": r.prompt, "target": r.target, **extra}) + "\n" for r in records)


@pytest.fixture
def at(tmp_path, scen):
    """A demo project made by `scen init`, for `--dir`."""
    scen("init", "--model", "demo", "--recipe", "key", "--dir", tmp_path / "p", "--device", "cpu")
    return ("--dir", tmp_path / "p")


@pytest.fixture
def edited_at(edited, tmp_path):
    """A copy of the session's project with 40 edits."""
    shutil.copytree(edited.project.folder, tmp_path / "copy")
    return ("--dir", tmp_path / "copy")


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_has_help_with_an_example(self, scen, command):
        assert f"Example: scen {command}" in " ".join(scen(command, "--help").stdout.split())

    def test_the_main_help_names_every_command(self, scen):
        text = scen("--help").stdout
        assert all(command in text for command in COMMANDS)
        assert scen("--version").stdout.startswith("scen 0.")


class TestInit:
    def test_json_tells_what_was_recorded(self, scen, tmp_path):
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
            (["--model", "./nothing-here"], "which layer to edit is required"),
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
    def test_a_mistake_makes_nothing(self, scen, tmp_path, options, message):
        result = scen("init", *options, "--dir", tmp_path / "p", code=2)
        assert message in result.stderr
        assert not (tmp_path / "p").exists()

    def test_a_project_is_not_overwritten(self, scen, at):
        before = (at[1] / "scen.db").read_bytes()
        assert "already holds a project" in scen("init", "--model", "demo", *at, code=2).stderr
        assert (at[1] / "scen.db").read_bytes() == before


class TestEdit:
    def test_a_file_then_the_same_file_again(self, scen, at, tmp_path):
        (tmp_path / "e.jsonl").write_text(lines(*RECORDS))
        first = scen("edit", tmp_path / "e.jsonl", *at)
        assert "4 edited, 0 skipped, 0 failed; 4 active edits" in first.stdout
        assert f"edit 1: {RECORDS[0].prompt} -> {RECORDS[0].target}" in first.stderr
        again = json.loads(scen("edit", tmp_path / "e.jsonl", *at, "--json").stdout)
        assert (again["edited"], again["skipped"], again["active"]) == (0, 4, 4)
        scen("verify", *at)

    def test_an_edit_in_force_is_not_made_twice_wherever_it_comes_from(self, scen, at):
        scen("edit", "-", *at, stdin=lines(RECORDS[0]))
        one = ("--prompt", RECORDS[0].prompt, "--target", RECORDS[0].target)
        again = json.loads(scen("edit", *one, *at, "--json").stdout)
        assert (again["edited"], again["edits"][0]["reason"]) == (0, "already edit 1")

    def test_from_standard_input_and_from_options(self, scen, at):
        assert "2 edited" in scen("edit", "-", *at, stdin=lines(*RECORDS[:2])).stdout
        scen("edit", "--prompt", RECORDS[2].prompt, "--target", RECORDS[2].target, *at)
        assert Project(at[1]).find(3).source == "command line"

    def test_a_bad_line_stops_everything_or_is_skipped(self, scen, at, tmp_path):
        (tmp_path / "e.jsonl").write_text(lines(RECORDS[0]) + '{"prompt": "Who?"}\n' + lines(RECORDS[1]))
        strict = scen("edit", tmp_path / "e.jsonl", *at, code=2)
        assert "e.jsonl:2: `target` is missing" in strict.stderr
        assert "nothing was edited" in strict.stderr
        assert Project(at[1]).ledger.edits() == []
        loose = scen("edit", tmp_path / "e.jsonl", "--keep-going", *at, code=3)
        assert "e.jsonl:2: not edited: `target` is missing" in loose.stderr
        assert "2 edited, 0 skipped, 1 failed" in loose.stdout

    def test_a_prompt_longer_than_the_context(self, scen, at):
        long = json.dumps({"prompt": "Where " * 300, "target": "Riga"}) + "\n"
        result = scen("edit", "-", *at, stdin=lines(RECORDS[0]) + long, code=2)
        assert "-:2: 'Where Where" in result.stderr
        assert "the base's context is 256" in result.stderr
        assert Project(at[1]).ledger.edits() == []

    def test_a_target_that_is_not_learned(self, scen, tmp_path):
        at = ("--dir", tmp_path / "p")
        scen("init", "--model", "demo", "--recipe", "paper", "--set", "expert_steps=1", *at)
        (tmp_path / "e.jsonl").write_text(lines(*RECORDS[:2]))
        result = scen("edit", tmp_path / "e.jsonl", "--keep-going", *at, code=3)
        assert "e.jsonl:1: not edited: target not learned: " in result.stderr
        assert "still wrong after 1 steps" in result.stderr
        assert "0 edited, 0 skipped, 2 failed; 0 active edits" in result.stdout
        strict = scen("edit", "-", *at, stdin=lines(*RECORDS[2:4]), code=3)
        assert "stopped there, 1 records before the end" in strict.stderr
        again = scen("edit", tmp_path / "e.jsonl", *at, code=3)
        assert "e.jsonl:1: target not learned when it was tried as edit 1" in again.stderr
        loose = scen("edit", tmp_path / "e.jsonl", "--keep-going", *at, code=3)
        assert "0 edited, 0 skipped, 2 failed" in loose.stdout

    def test_a_new_target_supersedes_explicitly(self, scen, at):
        scen("edit", "--prompt", RECORDS[0].prompt, "--target", "Peru", *at)
        result = scen("edit", "--prompt", RECORDS[0].prompt, "--target", "Cuba", *at)
        assert "supersedes edit 1" in result.stderr
        assert json.loads(scen("ask", RECORDS[0].prompt, *at, "--json").stdout)["patched"] == "Cuba"
        states = json.loads(scen("status", *at, "--json").stdout)["states"]
        assert (states["active"], states["superseded"]) == (1, 1)

    def test_a_reverted_edit_does_not_come_back_with_its_file(self, scen, at, tmp_path):
        (tmp_path / "e.jsonl").write_text(lines(*RECORDS[:2]))
        scen("edit", tmp_path / "e.jsonl", *at)
        scen("revert", "1", *at)
        again = json.loads(scen("edit", tmp_path / "e.jsonl", *at, "--json").stdout)
        assert again["edits"][0]["reason"].startswith("edit 1 of this file is reverted")
        assert again["active"] == 1
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "e.jsonl").write_text(lines(RECORDS[2]))  # another file of the same name
        assert "1 edited" in scen("edit", tmp_path / "other" / "e.jsonl", *at).stdout
        scen("edit", "--prompt", RECORDS[0].prompt, "--target", RECORDS[0].target, *at)  # asked for outright, it does
        assert Project(at[1]).find(4).state == "active"

    def test_an_edit_that_does_not_fire_on_its_own_prompt_says_so(self, scen, tmp_path):
        at = ("--dir", tmp_path / "p")
        rates = ("--set", "neuron_lr=1e-4", "--set", "neuron_steps=20")  # the paper's
        scen("init", "--model", "demo", "--recipe", "paper", *rates, *at)
        result = scen("edit", "-", *at, stdin=lines(RECORDS[0]))
        assert "it does not fire on its own prompt: activation 0.5" in result.stderr
        assert "theta 0.65" in result.stderr
        assert json.loads(scen("ask", RECORDS[0].prompt, *at, "--json").stdout)["edit"] is None

    @pytest.mark.parametrize(
        "options",
        [[], ["e.jsonl", "--prompt", "a"], ["--suite", "demo", "--prompt", "a", "--target", "b"]],
    )
    def test_one_source_of_records_at_a_time(self, scen, at, options):
        assert "give one of" in scen("edit", *options, *at, code=2).stderr

    def test_prompt_and_target_go_together(self, scen, at):
        assert "go together" in scen("edit", "--prompt", "Who?", *at, code=2).stderr

    def test_the_same_edits_give_the_same_files(self, scen, tmp_path):
        names = []
        for folder in ("a", "b"):
            at = ("--dir", tmp_path / folder)
            scen("init", "--model", "demo", *at)
            scen("edit", "--suite", "demo", "--first", "3", *at)
            names.append(sorted(path.name for path in (tmp_path / folder / "edits").iterdir()))
        assert names[0] == names[1]  # a name holds its content's sha256


class TestAsk:
    def test_an_edit_fires_and_is_named(self, scen, edited_at):
        answer = json.loads(scen("ask", RECORDS[0].rephrases[0], *edited_at, "--json").stdout)
        assert (answer["patched"], answer["edit"]) == (RECORDS[0].target, 1)
        assert answer["base"] != answer["patched"]
        assert answer["neurons"][0]["edit"] == 1
        activations = [neuron["activation"] for neuron in answer["neurons"]]
        assert activations == sorted(activations, reverse=True)
        assert len(activations) == 3
        assert activations[0] > answer["theta"] > activations[1]

    def test_an_unedited_prompt(self, scen, edited_at):
        fact = right_facts()[0]
        result = scen("ask", fact.phrasings[0], *edited_at)
        assert "no edit fired: the base's own answer" in result.stdout
        answer = json.loads(scen("ask", fact.phrasings[0], *edited_at, "--json").stdout)
        assert answer["base"] == answer["patched"] == fact.answer

    def test_an_empty_prompt(self, scen, at):
        assert "the prompt is empty" in scen("ask", " ", *at, code=2).stderr

    def test_a_prompt_that_is_no_text(self, scen, at):
        assert "half a Unicode character" in scen("ask", "\udcff abc", *at, code=2).stderr

    def test_a_project_without_edits(self, scen, at):
        answer = json.loads(scen("ask", "Who?", *at, "--json").stdout)
        assert answer["neurons"] == []
        assert answer["base"] == answer["patched"]

    def test_users_text_is_not_markup(self, scen, at):
        scen("edit", "--prompt", "[bold]Who[/bold] is [red]?", "--target", "Riga", *at)
        for command in (["status"], ["show", "1"], ["log"], ["ask", "[bold]Who[/bold] is [red]?"]):
            assert "[bold]Who[/bold] is [red]?" in scen(*command, *at).stdout


class TestEval:
    def test_figures_go_to_stdout_and_to_the_ledger(self, scen, edited_at):
        result = scen("eval", "--suite", "demo", *edited_at)
        assert "Reliability  100.0 % (40/40;" in result.stdout
        assert "teacher-forced token accuracy (not generation)" in result.stdout
        rows = list(Project(edited_at[1]).ledger.db["evaluations"].rows)
        assert [row["suite"] for row in rows] == ["demo"]
        assert json.loads(rows[0]["metrics"])["figures"]["reliability"]["patched"]["right"] == 40

    def test_a_users_own_file(self, scen, edited_at, tmp_path):
        (tmp_path / "mine.jsonl").write_text(lines(*RECORDS, rephrases=[]))
        (tmp_path / "keep.jsonl").write_text(json.dumps({"prompt": right_facts()[0].phrasings[0]}) + "\n")
        metrics = json.loads(
            scen(
                "eval", "--suite", tmp_path / "mine.jsonl", "--locality", tmp_path / "keep.jsonl", *edited_at, "--json"
            ).stdout
        )
        assert metrics["figures"]["reliability"]["patched"]["right"] == 4
        assert metrics["figures"]["generality"]["patched"]["total"] == 0
        assert metrics["figures"]["locality"]["patched"]["right"] == 1

    def test_paper_decoding(self, scen, edited_at, tmp_path):
        (tmp_path / "mine.jsonl").write_text(lines(*RECORDS))
        out = scen("eval", "--suite", tmp_path / "mine.jsonl", "--decoding", "paper", *edited_at, "--json")
        assert json.loads(out.stdout)["figures"]["reliability"]["patched"]["right"] == 4

    def test_gates(self, scen, edited_at):
        ok = ("--gate", "reliability>=0.99", "--gate", "locality>=0.5")
        scen("eval", "--suite", "demo", "--quick", *ok, *edited_at)
        failed = scen("eval", "--suite", "demo", "--quick", *ok, "--gate", "generality>=0.999", *edited_at, code=3)
        assert "gate `generality>=0.999` is not met: generality is 9" in failed.stderr
        assert "Reliability  100.0 % (40/40;" in failed.stdout  # the figures are shown all the same
        assert len(Project(edited_at[1]).ledger.evaluations()) == 2
        assert "is not understood" in scen("eval", "--suite", "demo", "--gate", "x", *edited_at, code=2).stderr
        unknown = scen("eval", "--suite", "demo", "--quick", "--gate", "speed>1", *edited_at, code=2)
        assert "there is no such figure" in unknown.stderr
        assert len(Project(edited_at[1]).ledger.evaluations()) == 2  # found out before anything was asked
        kind = scen("eval", "--suite", "demo", "--gate", "near-miss/far>=0.1", *edited_at, code=2)
        assert "there is no such figure" in kind.stderr
        assert len(Project(edited_at[1]).ledger.evaluations()) == 3  # found out after: nothing is thrown away

    def test_against_an_earlier_evaluation(self, scen, edited_at, tmp_path):
        mine = tmp_path / "mine.jsonl"
        mine.write_text(lines(*RECORDS))
        suite = ("--suite", mine, *edited_at)
        assert "kept as evaluation 1" in scen("eval", *suite, "--quick").stderr
        same = scen("eval", *suite, "--quick", "--against", "1")
        assert "no figure moved" in same.stdout
        project = Project(edited_at[1])
        project.ledger.db["thresholds"].insert({"theta": 1.1, "chosen_by": "test", "created": "now"})
        result = scen("eval", *suite, "--quick", "--against", "1")
        assert "against evaluation 1" in result.stdout
        assert re.search(rf"lost +reliability +1 +{re.escape(RECORDS[0].prompt)}", result.stdout)
        data = json.loads(scen("eval", *suite, "--quick", "--against", "1", "--json").stdout)["against"]
        assert {change["verdict"] for change in data["changes"]} == {"lost"}
        assert "there is no evaluation 9" in scen("eval", *suite, "--against", "9", code=2).stderr
        other = scen("eval", "--suite", "demo", "--quick", "--against", "1", *edited_at, code=2)
        assert "is of suite `mine.jsonl`" in other.stderr

    def test_mistakes(self, scen, at):
        assert "none of the" in scen("eval", "--suite", "demo", *at, code=2).stderr
        assert "--data FILE" in scen("eval", "--suite", "zsre", *at, code=2).stderr
        assert "has its own data" in scen("eval", "--suite", "demo", "--data", "x", *at, code=2).stderr
        assert "hallucination" in scen("eval", "--suite", "demo", "--accurate", "x", *at, code=2).stderr
        told = scen("eval", "--suite", "hallucination", "--quick", *at, code=2).stderr
        assert "say nothing of the hallucination suite" in told
        for command in (["show"], ["revert"], ["eval", "--suite", "demo", "--against"]):
            assert "too large" in scen(*command, "99999999999999999999", *at, code=2).stderr
        assert "decoding `loud`" in scen("eval", "--suite", "demo", "--decoding", "loud", *at, code=2).stderr


class TestLedgerCommands:
    def test_status_log_and_show(self, scen, edited_at):
        assert "40 active" in scen("status", *edited_at).stdout
        events = json.loads(scen("log", *edited_at, "--json").stdout)
        assert [event["kind"] for event in events] == ["init"] + ["edit"] * 40
        shown = json.loads(scen("show", "2", *edited_at, "--json").stdout)
        assert (shown["prompt"], shown["state"]) == (RECORDS[1].prompt, "active")
        assert len(shown["expert_losses"]) == 10
        assert shown["expert_losses"][-1] < shown["expert_losses"][0]
        assert "there is no edit 99" in scen("show", "99", *edited_at, code=2).stderr

    def test_in_a_pipe_every_record_keeps_to_its_line(self, scen, at):
        long = "Where, when and on which of the many rivers of that country was it that Ada was born " * 3
        scen("edit", "--prompt", long + "?", "--target", "Riga", *at)
        printed = scen("status", *at).stdout.splitlines()
        assert f"   1  active  {long}?  Riga" in printed
        assert all(line == line.rstrip() for line in printed)

    def test_reverting_an_edit_brings_back_the_one_it_had_superseded(self, scen, at):
        for target in ("Peru", "Cuba"):
            scen("edit", "--prompt", RECORDS[0].prompt, "--target", target, *at)
        assert json.loads(scen("show", "2", *at, "--json").stdout)["supersedes"] == [1]
        told = scen("revert", "2", *at).stdout
        assert "1 active edits; edit 1, which it had superseded, is active again" in told
        assert json.loads(scen("ask", RECORDS[0].prompt, *at, "--json").stdout)["patched"] == "Peru"
        assert "0 active edits" in scen("revert", "1", *at).stdout

    def test_revert_is_felt_at_once(self, scen, edited_at):
        assert "39 active edits" in scen("revert", "1", *edited_at).stdout
        answer = json.loads(scen("ask", RECORDS[0].prompt, *edited_at, "--json").stdout)
        assert answer["edit"] != 1
        assert answer["patched"] == answer["base"]

    def test_merge_says_shape_and_digest_and_repeats_itself(self, scen, edited_at):
        first = scen("merge", *edited_at).stdout
        assert "W_merge 40 x 768, sha256 " in first
        assert scen("merge", *edited_at).stdout == first

    def test_verify_finds_damage_and_repairs_what_it_can(self, scen, edited_at):
        assert "40 edits: ledger, log and files agree" in scen("verify", *edited_at).stdout
        deep = scen("verify", "--deep", "--behaviour", *edited_at).stdout
        for said in ("every file is as it was committed", "keys are what the base gives", "calls itself and says its"):
            assert said in deep
        (edited_at[1] / "edits" / "notes.txt").write_text("the user's own: none of scen's business")
        (edited_at[1] / "edits" / "000099-0123abcd.safetensors.tmp").write_text("x")
        assert "belongs to nothing" in scen("verify", *edited_at, code=12).stdout
        assert "removed `edits/000099-0123abcd.safetensors.tmp`" in scen("verify", "--repair", *edited_at).stdout
        victim = sorted((edited_at[1] / "edits").iterdir())[4]
        victim.write_bytes(victim.read_bytes()[:-1])
        assert "edit 5 was" in scen("verify", *edited_at, code=12).stdout

    @pytest.mark.parametrize(
        "command", [["status"], ["edit", "-"], ["ask", "x"], ["merge"], ["revert", "1"], ["verify"]]
    )
    def test_no_project_here(self, scen, tmp_path, command):
        result = scen(*command, "--dir", tmp_path, code=10, stdin=lines(RECORDS[0]))
        assert "no scen project" in result.stderr
        assert "scen init" in result.stderr


def test_json_is_all_there_is_on_stdout(scen, at):
    for command in (
        ["status"],
        ["log"],
        ["merge"],
        ["verify"],
        ["edit", "--suite", "demo", "--first", "1"],
        ["ask", "x"],
    ):
        json.loads(scen(*command, *at, "--json").stdout)


def test_quiet_leaves_only_the_result(scen, at):
    result = scen("edit", "--suite", "demo", "--first", "1", "--quiet", *at)
    assert result.stderr == ""
    assert result.stdout == "1 edited, 0 skipped, 0 failed; 1 active edits\n"


def test_an_unexpected_option_is_wrong_usage():
    assert CliRunner().invoke(app, ["status", "--colour"]).exit_code == 2

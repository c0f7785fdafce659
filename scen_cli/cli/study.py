"""`scen study`: the paper's protocol, tables and figures on any base."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scen_cli.cli.loaders import HERE, Device, Dir, loading, open_editor
from scen_cli.cli.output import Json, Output, Quiet
from scen_cli.cli.study_output import report

if TYPE_CHECKING:
    from scen_cli.data.suites import Suite
    from scen_cli.editing.editor import Editor
    from scen_cli.studies.project_variants import StudyContext

SuiteName = Annotated[str, typer.Option("--suite", help="demo; zsre or counterfact with --data; or a file.")]
SuiteData = Annotated[Path | None, typer.Option("--data", help="The data file of a named suite.")]
Questions = Annotated[Path, typer.Option("--data", help="Questions, in any form that `scen data inspect` reads.")]
Edits = Annotated[int, typer.Option(min=1, help="Number of edits.")]
Decoding = Annotated[str, typer.Option(help="greedy, or paper (4 beams, repetition penalty 1.1).")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for the results.", show_default="DIR/studies")]

TABLES = {  # command: what it reports, number of edits in the paper
    "table1": ("SCEN's row of Table 1: Reliability, Generality, Locality (paper: after 200 edits)", 200),
    "table2": ("SCEN's row of Table 2: the same metrics (paper: after 1,000 edits)", 1000),
    "table3": ("Table 3: experts at W_attn, W_up or W_down; the neuron's losses left out one by one", 200),
    "table4": ("Table 4: one, two and four edits per expert", 200),
    "fig3": ("Fig. 3: activation of every neuron on every edit", 100),
    "fig4": ("Fig. 4: the three metrics at each threshold", 200),
    "fig5": ("Fig. 5: the three metrics with edits at every second layer", 200),
}
app = typer.Typer(
    help="Reproduce the paper's protocol, tables and figures on any base. Example: scen study table4 --edits 100",
    no_args_is_help=True,
)


@app.command("sft")
def sft(
    model: Annotated[str, typer.Option(help="The base to fine-tune: demo, an alias, a hub id, or a local folder.")],
    data: Questions,
    to: Annotated[Path, typer.Option("--out", help="Folder to write: the new base and the split.")],
    train: Annotated[int, typer.Option(min=1, help="Questions in D_train; the others are D_test.")] = 10_000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over D_train.")] = 3,
    batch: Annotated[int, typer.Option(min=1, help="Questions per step.")] = 16,
    lr: Annotated[float, typer.Option(help="Highest learning rate of AdamW.")] = 1e-5,
    template: Annotated[str, typer.Option(help="Prompt template, as for `scen init`.")] = "[INST]{prompt}[/INST]",
    seed: Annotated[int, typer.Option(help="Seed of the split and of the order.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a base on questions: the first stage of the ZsRE protocol. A stopped run resumes.

    If the data has both, the base learns the true answer, not the
    counterfactual target.

    Example: scen study sft --model llama2-7b --data zsre.jsonl --out tuned
    """
    out = Output(as_json, quiet)
    from scen_cli.data.entries import good_records
    from scen_cli.data.suites import as_question, train_test_split

    d_train, d_test = train_test_split([as_question(record) for record in good_records(str(data))], train, seed)
    with loading(model, out):
        from scen_cli.model.base import load_base
        from scen_cli.studies.fine_tune_base import FineTuningConfig, fine_tune

        base = load_base(model, device=device)
    config = FineTuningConfig(epochs=epochs, batch=batch, lr=lr, seed=seed)
    with out.progress(epochs * math.ceil(train / batch), "steps") as progress:
        fine_tune(base, template, d_train, d_test, to, config, progress, out.note)
    counts = {"out": str(to), "train": len(d_train), "test": len(d_test)}
    out.result(counts, f"{to}: a base tuned on {len(d_train)} questions; {len(d_test)} others in d_test.jsonl")
    out.note(f"next: `scen init --model {to} --layer N`, then `scen study divide --data {to / 'd_test.jsonl'}`")


@app.command("divide")
def divide(
    data: Questions,
    decoding: Decoding = "greedy",
    to: Out = None,
    device: Device = "auto",
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask the base every question; write D_edit (wrong answers) and D_loc (right answers).

    Example: scen study divide --data tuned/d_test.jsonl
    """
    out = Output(as_json, quiet)
    from scen_cli.data.suites import load_suite

    questions = load_suite(str(data))
    editor = open_editor(dir, device, out)
    suite, folder = split_questions(editor, questions, decoding, to or dir / "studies", out)
    counts = {"out": str(folder), "d_edit": len(suite.edits), "d_loc": len(suite.locality)}
    out.result(counts, f"{folder}: {len(suite.edits)} answered wrongly (d_edit), {len(suite.locality)} rightly (d_loc)")
    at = "" if dir == HERE else f" --dir {dir}"
    locality = f" --locality {folder / 'd_loc.jsonl'}" if suite.locality else ""
    out.note(f"next: `scen edit {folder / 'd_edit.jsonl'} --first 200{at}`, then")
    out.note(f"`scen eval --suite {folder / 'd_edit.jsonl'}{locality}{at}`")


@app.command("hallucination")
def hallucination(
    data: Annotated[Path, typer.Option(help="WikiBio-E: passages to edit, with their true next sentences.")],
    accurate: Annotated[Path | None, typer.Option(help="WikiBio-A: sentences that must stay likely.")] = None,
    openwebtext: Annotated[Path | None, typer.Option(help="OpenWebText: texts that must stay likely.")] = None,
    edits: Edits = 200,
    to: Out = None,
    device: Device = "auto",
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The Hallucination half of Table 1: perplexities of WikiBio-E, WikiBio-A and OpenWebText, with the base's.

    Uses the current project's base and rates, the template `none`, and the
    paper's settings for this suite: 30 neuron steps, theta 0.60, experts are
    active even if they do not give the whole sentence.

    Example: scen study hallucination --data wikibio-test-all.json --accurate hall_accurates.json
    """
    out = Output(as_json, quiet)
    from scen_cli.data.suites import load_passages

    passages = load_passages(data, accurate, openwebtext)
    folder = to or dir / "studies"
    editor = open_editor(dir, device, out)
    from scen_cli.studies import paper_tables

    suite = replace(passages.edits, edits=passages.edits.edits[:edits])
    context = _make_context(editor, suite, "teacher-forced", folder, out)
    with out.progress(len(suite.edits), "hallucination") as progress:
        result = paper_tables.hallucination(replace(context, progress=progress), replace(passages, edits=suite))
    report(out, "Table 1, Hallucination: mean perplexities", "hallucination", result, context, folder)


def _register(name: str, title: str, paper_edits: int) -> None:
    """Add the command for one table or figure of the paper."""

    def command(
        suite: SuiteName = "demo",
        data: SuiteData = None,
        edits: Edits = paper_edits,
        decoding: Decoding = "greedy",
        to: Out = None,
        device: Device = "auto",
        dir: Dir = HERE,
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        out, folder = Output(as_json, quiet), to or dir / "studies"
        from scen_cli.data.suites import load_suite
        from scen_cli.report.pictures import require_matplotlib

        if name.startswith("fig"):
            require_matplotlib()
        questions = load_suite(suite, data)
        editor = open_editor(dir, device, out)
        from scen_cli.evaluation.evaluation import check_decoding
        from scen_cli.studies.paper_tables import STUDIES
        from scen_cli.studies.split_by_base import suite_warnings

        check_decoding(decoding)
        if suite != "demo":
            questions, _folder = split_questions(editor, questions, decoding, folder, out)
        for warning in suite_warnings(questions, edits):
            out.warn(warning)
        context = _make_context(editor, replace(questions, edits=questions.edits[:edits]), decoding, folder, out)
        variants = STUDIES[name].variants(context)
        with out.progress(len(context.suite.edits) * len(variants), name) as progress:
            result = STUDIES[name].run(replace(context, progress=progress), variants)
        report(out, title, name, result, context, folder)

    command.__doc__ = f"""{title}.

    Uses the current project's base and settings, in projects of its own.
    Writes JSON, CSV and pictures; a stopped study resumes. A suite other than
    demo is split first: what the base answers wrongly is edited, what it
    answers rightly must not change.

    Example: scen study {name} --suite demo --edits {min(paper_edits, 200)}
    """
    app.command(name)(command)


for _name, (_title, _edits) in TABLES.items():
    _register(_name, _title, _edits)


def split_questions(editor: Editor, questions: Suite, decoding: str, to: Path, out: Output) -> tuple[Suite, Path]:
    """Split a suite into D_edit and D_loc by the base's answers; return them and the folder they are saved in."""
    from scen_cli.studies.split_by_base import split_by_base

    folder = to / f"divided-{Path(questions.name).stem}"
    with out.progress(1 + len(questions.edits) // 64, "asking the base") as progress:
        return split_by_base(editor, questions.edits, folder, decoding, progress), folder


def _make_context(editor: Editor, suite: Suite, decoding: str, folder: Path, out: Output) -> StudyContext:
    from scen_cli.studies.project_variants import StudyContext

    project = editor.project
    threshold, recipe = project.ledger.threshold(), dict(project.settings["recipe"])
    if threshold.false_activation is not None:
        recipe["false_activation"] = threshold.false_activation
    elif threshold.chosen_by != "init":
        recipe |= {"theta": threshold.theta, "false_activation": None}
    settings = {**project.settings, "recipe": recipe}
    shared = (settings, threshold.theta, project.guard(), editor.base, suite, decoding, folder / "projects")
    return StudyContext(*shared, progress=lambda *_: None, warn=out.warn)

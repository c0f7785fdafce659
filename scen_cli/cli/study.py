"""`scen study`: the paper's protocol, tables and figures on any base."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scen_cli.cli.loaders import HERE, Device, Dir, load_quietly, open_editor
from scen_cli.cli.output import Json, Output, Quiet, table
from scen_cli.errors import ScenError

if TYPE_CHECKING:
    from scen_cli.data.suites import Suite as Suite_
    from scen_cli.editing.editor import Editor
    from scen_cli.studies.paper import Finding
    from scen_cli.studies.project_variants import Bench

SHOWN = 20  # rows of a long table printed

app = typer.Typer(
    help="The paper's protocol, tables and figures on any base. Example: scen study table4 --edits 100",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("sft")
def sft(
    model: Annotated[str, typer.Option(help="The base to fine-tune: demo, an alias, a hub id, or a local folder.")],
    data: Annotated[Path, typer.Option(help="Questions and answers, in any form `scen data inspect` knows.")],
    to: Annotated[Path, typer.Option("--out", help="The folder to write: a base, and the split beside it.")],
    train: Annotated[int, typer.Option(min=1, help="Questions for D_train; the others are D_test.")] = 10_000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over D_train.")] = 3,
    batch: Annotated[int, typer.Option(min=1, help="Questions in a step.")] = 16,
    lr: Annotated[float, typer.Option(help="AdamW's highest rate.")] = 1e-5,
    template: Annotated[str, typer.Option(help="How a prompt is put, as for `scen init`.")] = "[INST]{prompt}[/INST]",
    seed: Annotated[int, typer.Option(help="Seed of the split and of the order.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a base on questions: the ZsRE protocol's first stage. A run that was stopped goes on.

    Where the data says both, the true answer is taught, not the
    counterfactual target.

    Example: scen study sft --model llama2-7b --data zsre.jsonl --out tuned
    """
    out = Output(as_json, quiet)
    from scen_cli.data.entries import good_records
    from scen_cli.data.questions import as_question, split

    d_train, d_test = split([as_question(record) for record in good_records(str(data))], train, seed)
    load_quietly(f"loading base `{model}`", out)
    from scen_cli.model.base import load_base
    from scen_cli.studies.sft import Tuning, fine_tune

    tuning = Tuning(epochs=epochs, batch=batch, lr=lr, seed=seed)
    base = load_base(model, device=device)
    with out.progress(epochs * math.ceil(train / batch), "steps") as tell:
        fine_tune(base, template, d_train, d_test, to, tuning, tell, out.note)
    result = {"out": str(to), "train": len(d_train), "test": len(d_test)}
    out.result(result, f"{to}: a base tuned on {len(d_train)} questions; {len(d_test)} others in d_test.jsonl")
    out.note(f"next: `scen init --model {to} --layer N`, then `scen study divide --data {to / 'd_test.jsonl'}`")


Suite = Annotated[str, typer.Option(help="demo; zsre or counterfact with --data; or a file of questions.")]
Data = Annotated[Path | None, typer.Option(help="The data file of a named suite.")]
Decoding = Annotated[str, typer.Option(help="greedy, or paper (4 beams, repetition penalty 1.1).")]
To = Annotated[Path | None, typer.Option("--out", help="Where results go.", show_default="DIR/studies")]

STUDIES = {
    "table1": ("SCEN's row of Table 1: Reliability, Generality, Locality (the paper: after 200 edits)", 200),
    "table2": ("SCEN's row of Table 2: the same (the paper: after 1,000 edits)", 1000),
    "table3": ("Table 3: experts at W_attn, W_up or W_down; the neuron's losses left out one by one", 200),
    "table4": ("Table 4: one, two and four edits for each expert", 200),
    "fig3": ("Fig. 3: activations of every neuron on every edit", 100),
    "fig4": ("Fig. 4: the three figures at each threshold", 200),
    "fig5": ("Fig. 5: the three figures with edits at every second layer", 200),
}
ABOUT = {name: about for name, (about, _edits) in STUDIES.items()}
ABOUT["hallucination"] = "Table 1, Hallucination: mean perplexities"


def _register(name: str, about: str, edits_in_paper: int) -> None:
    def study(
        suite: Suite = "demo",
        data: Data = None,
        edits: Annotated[int, typer.Option(min=1, help="How many edits.")] = edits_in_paper,
        decoding: Decoding = "greedy",
        to: To = None,
        device: Device = "auto",
        dir: Dir = HERE,
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        _study(name, (suite, data), edits, decoding, to, device, dir, Output(as_json, quiet))

    study.__doc__ = f"""{about}.

    With the current project's base and settings, in projects of its own;
    writes JSON, CSV and pictures, and goes on where it was stopped. A suite
    other than demo is divided first: what the base answers wrongly is edited,
    what it answers rightly must stay.

    Example: scen study {name} --suite demo --edits {min(edits_in_paper, 200)}
    """
    app.command(name)(study)


for _name, (_about, _edits) in STUDIES.items():
    _register(_name, _about, _edits)


@app.command("hallucination")
def hallucination(
    data: Annotated[Path, typer.Option(help="WikiBio-E: passages and their true next sentences, to edit.")],
    accurate: Annotated[Path | None, typer.Option(help="WikiBio-A: sentences that must stay likely.")] = None,
    openwebtext: Annotated[Path | None, typer.Option(help="OpenWebText: texts that must stay likely.")] = None,
    edits: Annotated[int, typer.Option(min=1, help="How many edits.")] = 200,
    to: To = None,
    device: Device = "auto",
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The other half of Table 1: perplexities of WikiBio-E, WikiBio-A and OpenWebText, the base's beside.

    With the current project's base and rates, the template `none`, and the
    paper's settings for this suite: 30 neuron steps, theta 0.60, experts in
    force whether or not they give the whole sentence.

    Example: scen study hallucination --data wikibio-test-all.json --accurate hall_accurates.json
    """
    out = Output(as_json, quiet)
    from scen_cli.data.passages import load_passages

    passages = load_passages(data, accurate, openwebtext)
    folder = to or dir / "studies"
    editor = open_editor(dir, device, out)
    from scen_cli.studies.paper import hallucination as run

    suite = replace(passages.edits, edits=passages.edits.edits[:edits])
    bench = _bench(editor, suite, "teacher-forced", folder, out)
    with out.progress(len(suite.edits), "hallucination") as tell:
        finding = run(replace(bench, tell=tell), replace(passages, edits=suite))
    _finish("hallucination", finding, bench, folder, out)


@app.command("divide")
def divide(
    data: Annotated[Path, typer.Option(help="Questions, in any form `scen data inspect` knows.")],
    decoding: Decoding = "greedy",
    to: Annotated[Path | None, typer.Option("--out", help="The folder to write.", show_default="DIR/studies")] = None,
    device: Device = "auto",
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask the base every question: D_edit, which it answers wrongly, and D_loc, which it answers rightly.

    Example: scen study divide --data tuned/d_test.jsonl
    """
    out = Output(as_json, quiet)
    from scen_cli.data.suites import load_suite

    loaded = load_suite(str(data))
    editor = open_editor(dir, device, out)
    found, folder = divided(editor, loaded, decoding, to or dir / "studies", out)
    counts = {"out": str(folder), "d_edit": len(found.edits), "d_loc": len(found.locality)}
    out.result(counts, f"{folder}: {len(found.edits)} answered wrongly (d_edit), {len(found.locality)} rightly (d_loc)")
    at = "" if dir == HERE else f" --dir {dir}"
    kept = f" --locality {folder / 'd_loc.jsonl'}" if found.locality else ""
    out.note(f"next: `scen edit {folder / 'd_edit.jsonl'} --first 200{at}`, then")
    out.note(f"`scen eval --suite {folder / 'd_edit.jsonl'}{kept}{at}`")


def divided(editor: Editor, questions: Suite_, decoding: str, to: Path, out: Output) -> tuple[Suite_, Path]:
    """What the base answers wrongly, to be edited, and rightly, to stay; the folder that keeps it."""
    from scen_cli.studies.split_by_base import divide as run

    folder = to / f"divided-{Path(questions.name).stem}"
    with out.progress(1 + len(questions.edits) // 64, "asking the base") as tell:
        return run(editor, questions.edits, folder, decoding, tell), folder


def _study(
    name: str,
    source: tuple[str, Path | None],
    edits: int,
    decoding: str,
    to: Path | None,
    device: str,
    dir: Path,
    out: Output,
) -> None:
    from scen_cli.data.suites import load_suite
    from scen_cli.report.pictures import require_matplotlib

    if name.startswith("fig"):
        require_matplotlib()
    suite = load_suite(*source)
    folder = to or dir / "studies"
    editor = open_editor(dir, device, out)
    from scen_cli.evaluation.evaluate_project import check_decoding
    from scen_cli.studies.paper import STUDIES as BY_NAME
    from scen_cli.studies.paper import projects_of
    from scen_cli.studies.split_by_base import fitting

    check_decoding(decoding)
    if source[0] != "demo":
        suite, _folder = divided(editor, suite, decoding, folder, out)
    for warning in fitting(suite, edits):
        out.warn(warning)
    bench = _bench(editor, replace(suite, edits=suite.edits[:edits]), decoding, folder, out)
    with out.progress(len(bench.suite.edits) * projects_of(name, bench), name) as tell:
        finding = BY_NAME[name](replace(bench, tell=tell))
    _finish(name, finding, bench, folder, out)


def _bench(editor: Editor, suite: Suite_, decoding: str, folder: Path, out: Output) -> Bench:
    from scen_cli.studies.project_variants import Bench

    project = editor.project
    threshold, recipe = project.ledger.threshold(), dict(project.settings["recipe"])
    if threshold.false_activation is not None:
        recipe["false_activation"] = threshold.false_activation
    elif threshold.chosen_by != "init":
        recipe |= {"theta": threshold.theta, "false_activation": None}
    settings = {**project.settings, "recipe": recipe}
    projects = folder / "projects"
    theta, guard = threshold.theta, project.guard()
    return Bench(settings, theta, guard, editor.base, suite, decoding, projects, lambda *_: None, out.warn)


def _finish(name: str, finding: Finding, bench: Bench, folder: Path, out: Output) -> None:
    """Write the findings and show them, shares in per cent."""
    from scen_cli.studies.write_results import write_finding

    if not finding.rows:
        raise ScenError(
            "none of the edits was learned: there is nothing to show",
            hint="other rates may learn them, in a new project: `scen init --dir NEW --set expert_lr=0.01`",
        )

    about = {"study": name, "suite": bench.suite.name, "edits": len(bench.suite.edits), "decoding": bench.decoding}
    about["theta"] = bench.theta
    about |= {key: bench.settings[key] for key in ("model", "weights_digest", "layer", "recipe", "seed")}
    files = write_finding(name, finding, about, folder)
    if finding.note:
        out.warn(finding.note)
    columns = [column for column in finding.rows[0] if not column.endswith("_of")]
    rows = [[_cell(row, column) for column in columns] for row in finding.rows]
    shown = rows if len(rows) <= SHOWN else rows[:: len(rows) // SHOWN]
    title = f"{ABOUT[name]}; here suite {bench.suite.name}, {len(bench.suite.edits)} edits"
    written = ", ".join(str(path) for path in files)
    out.result({**about, "rows": finding.rows}, title, table([f"{c}#" for c in columns], shown), written)


def _cell(row: dict[str, Any], column: str) -> str:
    """A share as `95.3 % (567/595)` where its count is known, else as `95.3 %`; other numbers as they are."""
    value = row[column]
    if value is None or not isinstance(value, float):
        return "-" if value is None else str(value)
    if column in ("theta", "patched", "base", "own", "strongest other"):
        return f"{value:.3f}"
    total = row.get(f"{column}_of")
    return f"{100 * value:.1f} %" + (f" ({round(value * total)}/{total})" if total else "")

"""`scen compare`: other methods beside SCEN, on one base, one suite, by one loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from scen_cli.cli.loaders import HERE, Device, Dir, open_editor
from scen_cli.cli.output import Json, Output, Quiet, table
from scen_cli.cli.study import split_questions
from scen_cli.errors import UsageError

if TYPE_CHECKING:
    from scen_cli.baselines.compare_methods import Comparison
    from scen_cli.baselines.method_variants import MethodVariant
    from scen_cli.data.passages import Passages
    from scen_cli.data.records import EditRecord
    from scen_cli.data.suites import Suite
    from scen_cli.editing.editor import Editor


def compare(
    methods: Annotated[
        str, typer.Option(help="Which, with commas between; every one unless given.", show_default="all")
    ] = "",
    suite: Annotated[
        str, typer.Option(help="demo; zsre, counterfact or hallucination with --data; or a file.")
    ] = "demo",
    data: Annotated[Path | None, typer.Option(help="The data file of a named suite.")] = None,
    accurate: Annotated[Path | None, typer.Option(help="hallucination: the accurate sentences (WikiBio-A).")] = None,
    openwebtext: Annotated[Path | None, typer.Option(help="hallucination: plain texts (OpenWebText).")] = None,
    edits: Annotated[int, typer.Option(min=1, help="How many edits are made and scored.")] = 200,
    trials: Annotated[int, typer.Option(min=1, help="Settings of each method that may be tried.")] = 8,
    decoding: Annotated[str, typer.Option(help="greedy, or paper (4 beams, repetition penalty 1.1).")] = "greedy",
    to: Annotated[Path | None, typer.Option("--out", help="Where results go.", show_default="DIR/compare")] = None,
    device: Device = "auto",
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Other methods of editing beside SCEN: the paper's Tables 1 and 2 on the current project's base.

    Each is tuned on other edits of the suite, all by the same budget, then
    makes the suite's first edits and is scored after the last one. Run again,
    the same command goes on where it was stopped.

    Example: scen compare --methods scen,melo,ft --suite demo --edits 50
    """
    out = Output(as_json, quiet)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    passages = _passages(suite, data, accurate, openwebtext)
    from scen_cli.data.suites import load_suite

    loaded = passages.edits if passages else load_suite(suite, data)
    editor = open_editor(dir, device, out)
    from scen_cli.baselines.catalogue import check_base
    from scen_cli.baselines.compare_methods import compare as run
    from scen_cli.baselines.method_variants import find_variants
    from scen_cli.evaluation.evaluation import check_decoding
    from scen_cli.studies.split_by_base import suite_warnings

    check_decoding(decoding)
    rows = find_variants(names, editor.model.config.num_hidden_layers)
    for row in rows:
        check_base(row.method, editor.model)
    folder = to or dir / "compare"
    if passages is None and suite != "demo":
        found, _folder = split_questions(editor, loaded, decoding, folder, out)
        for warning in suite_warnings(found, 1):
            out.warn(warning)
        loaded = replace(found, name=Path(loaded.name).stem)
    bench = _bench(editor, loaded, passages, (edits, trials, decoding), folder, out)
    if passages:
        rows = [_even_if_not_learned(row) for row in rows]
    steps = len(rows) * (trials + len(bench.test.edits))
    with out.progress(steps, "comparing") as tell:
        results = run(replace(bench, progress=tell), rows)
    _show(bench, results, out)


def _passages(suite: str, data: Path | None, accurate: Path | None, openwebtext: Path | None) -> Passages | None:
    if suite != "hallucination":
        if accurate or openwebtext:
            raise UsageError("`--accurate` and `--openwebtext` are files of the hallucination suite alone")
        return None
    from scen_cli.data.passages import load_passages

    return load_passages(data, accurate, openwebtext)


def _even_if_not_learned(row: MethodVariant) -> MethodVariant:
    """Whole sentences are scored by perplexity: SCEN's experts count though they miss a token of them."""
    if row.method != "scen":
        return row
    changes = {"require_learned": False, **row.settings.get("changes", {})}
    return replace(row, settings={**row.settings, "changes": changes})


def _bench(
    editor: Editor, suite: Suite, passages: Passages | None, asked: tuple[int, int, str], folder: Path, out: Output
) -> Comparison:
    from scen_cli.baselines.compare_methods import Comparison
    from scen_cli.baselines.context import project_context
    from scen_cli.baselines.scoring import GenerationScoring, PerplexityScoring, Scoring
    from scen_cli.baselines.splits import split_suite
    from scen_cli.evaluation.evaluation import DECODING

    edits, trials, decoding = asked
    given = project_context(editor)
    parts = split_suite(suite, edits, set(given.prompts), lambda record: _fits(editor, record))
    if len(parts.test) < edits:
        out.warn(f"suite `{suite.name}` has {len(parts.test)} edits that the base can take: fewer than {edits}")
    given = replace(given, development=parts.training)
    options = DECODING[decoding]
    tuning: Scoring
    test: Scoring
    if passages:
        kept_back = [len(some) - len(some) // 4 for some in (passages.accurate, passages.openwebtext)]
        tuning = PerplexityScoring(
            given, parts.tuning, passages.accurate[kept_back[0] :], passages.openwebtext[kept_back[1] :]
        )
        test = PerplexityScoring(
            given, parts.test, passages.accurate[: kept_back[0]], passages.openwebtext[: kept_back[1]]
        )
    else:
        tuning, test = (
            GenerationScoring(given, some, _answered(editor, locality, options), options)
            for some, locality in ((parts.tuning, parts.tuning_locality), (parts.test, parts.test_locality))
        )
    settings = editor.project.settings
    about: dict[str, Any] = {"suite": suite.name, "edits": len(parts.test), "tuned on": len(parts.tuning)}
    about |= {"trained on": len(parts.training), "trials": trials, "decoding": decoding}
    about |= {name: settings[name] for name in ("model", "weights_digest", "layer", "template", "seed")}
    return Comparison(given, tuning, test, trials, about, folder / f"{suite.name}-{len(parts.test)}", lambda *_: None)


def _answered(editor: Editor, prompts: Any, options: dict[str, Any]) -> list[tuple[str, str]]:
    from scen_cli.baselines.generate import answer

    return list(zip(prompts, answer(editor.base, editor.template, prompts, **options), strict=True))


def _fits(editor: Editor, record: EditRecord) -> bool:
    """Whether the base can take the edit's prompt with its target, and its rephrases."""
    try:
        editor.check_trainable(record)
    except UsageError:
        return False
    return all(editor.fits(text) for text in record.rephrases)


def _machine(bench: Comparison) -> dict[str, Any]:
    """Where times were taken."""
    import torch

    device = bench.context.base.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _show(bench: Comparison, results: list[dict[str, Any]], out: Output) -> None:
    from scen_cli.data.write_records import write_json
    from scen_cli.report.comparison import columns, lines, picture, retention
    from scen_cli.report.pictures import has_matplotlib

    content = {**bench.metadata, "machine": _machine(bench), "rows": results}
    path = bench.folder.with_suffix(".json")
    write_json(path, content)
    written = [path]
    if has_matplotlib():
        from scen_cli.report.pictures import save

        written.append(bench.folder.with_suffix(".png"))
        save(picture(results), written[-1])
    about = bench.metadata
    title = f"{about['suite']}: {about['edits']} edits, scored after the last, {about['decoding']} decoding"
    budget = f"tuned on {about['tuned on']} other edits, {about['trials']} settings of each at most"
    shown: list[RenderableType] = [title, budget, table(columns(results), lines(results))]
    if curves := retention(results):
        shown += ["\nretention: Reliability of edits 1..t when there were t", table(("", ""), curves)]
    out.result(content, *shown, "\n" + ", ".join(map(str, written)))

"""`scen compare`: other editing methods beside SCEN, on one base and one suite."""

from __future__ import annotations

from collections.abc import Sequence
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
    from scen_cli.baselines.catalogue import MethodVariant
    from scen_cli.baselines.compare_methods import Comparison
    from scen_cli.baselines.context import MethodContext
    from scen_cli.baselines.scoring import Scoring, Splits
    from scen_cli.data.records import EditRecord
    from scen_cli.data.suites import Passages, Suite
    from scen_cli.editing.editor import Editor


def compare(
    methods: Annotated[str, typer.Option(help="Methods, separated by commas.", show_default="all")] = "",
    suite: Annotated[
        str, typer.Option(help="demo; zsre, counterfact or hallucination with --data; or a file.")
    ] = "demo",
    data: Annotated[Path | None, typer.Option(help="The data file of a named suite.")] = None,
    accurate: Annotated[Path | None, typer.Option(help="hallucination: the accurate sentences (WikiBio-A).")] = None,
    openwebtext: Annotated[Path | None, typer.Option(help="hallucination: plain texts (OpenWebText).")] = None,
    edits: Annotated[int, typer.Option(min=1, help="How many edits to make and score.")] = 200,
    trials: Annotated[int, typer.Option(min=1, help="How many settings to try for each method.")] = 8,
    decoding: Annotated[str, typer.Option(help="greedy, or paper (4 beams, repetition penalty 1.1).")] = "greedy",
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder for the results.", show_default="DIR/compare")
    ] = None,
    device: Device = "auto",
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare editing methods: the paper's Tables 1 and 2 on the current project's base.

    Each method is tuned with the same budget on other edits of the suite. Then
    it makes the suite's first edits, and is scored after the last one. A
    stopped comparison resumes.

    Example: scen compare --methods scen,melo,ft --suite demo --edits 50
    """
    out, folder = Output(as_json, quiet), to or dir / "compare"
    passages = _load_passages(suite, data, accurate, openwebtext)
    from scen_cli.data.suites import load_suite

    loaded = passages.edits if passages else load_suite(suite, data)
    editor = open_editor(dir, device, out)
    from scen_cli.baselines.compare_methods import compare as compare_methods
    from scen_cli.evaluation.evaluation import check_decoding

    check_decoding(decoding)
    variants = _find_variants(methods, editor, keep_unlearned=passages is not None)
    if passages is None and suite != "demo":
        loaded = _wrongly_answered(editor, loaded, decoding, folder, out)
    comparison = _make_comparison(editor, loaded, passages, edits, trials, decoding, folder, out)
    steps = len(variants) * (trials + len(comparison.test.edits))
    with out.progress(steps, "comparing") as progress:
        results = compare_methods(replace(comparison, progress=progress), variants)
    _write_and_print(comparison, results, out)


def _load_passages(suite: str, data: Path | None, accurate: Path | None, openwebtext: Path | None) -> Passages | None:
    if suite != "hallucination":
        if accurate or openwebtext:
            raise UsageError("`--accurate` and `--openwebtext` are files of the hallucination suite")
        return None
    from scen_cli.data.suites import load_passages

    return load_passages(data, accurate, openwebtext)


def _find_variants(methods: str, editor: Editor, keep_unlearned: bool) -> list[MethodVariant]:
    """The variants of these methods. Raises `UsageError` for one that the base is not suitable for.

    `keep_unlearned`: SCEN's experts are active even if they miss a token of their target. Whole sentences are scored
    by perplexity.
    """
    from scen_cli.baselines.catalogue import check_base, find_variants

    names = [name.strip() for name in methods.split(",") if name.strip()]
    variants = find_variants(names, editor.model.config.num_hidden_layers)
    for variant in variants:
        check_base(variant.method, editor.model)
    return [_keep_unlearned(variant) if keep_unlearned else variant for variant in variants]


def _keep_unlearned(variant: MethodVariant) -> MethodVariant:
    if variant.method != "scen":
        return variant
    changes = {"require_learned": False, **variant.settings.get("changes", {})}
    return replace(variant, settings={**variant.settings, "changes": changes})


def _wrongly_answered(editor: Editor, suite: Suite, decoding: str, folder: Path, out: Output) -> Suite:
    """The suite's questions that the base answers wrongly, as edits, with the others as locality prompts."""
    from scen_cli.studies.split_by_base import suite_warnings

    split, _folder = split_questions(editor, suite, decoding, folder, out)
    for warning in suite_warnings(split, 1):
        out.warn(warning)
    return replace(split, name=Path(suite.name).stem)


def _make_comparison(
    editor: Editor,
    suite: Suite,
    passages: Passages | None,
    edits: int,
    trials: int,
    decoding: str,
    folder: Path,
    out: Output,
) -> Comparison:
    from scen_cli.baselines.compare_methods import Comparison
    from scen_cli.baselines.context import project_context
    from scen_cli.baselines.scoring import split_suite

    context = project_context(editor)
    splits = split_suite(suite, edits, set(context.prompts), lambda record: _fits(editor, record))
    if len(splits.test) < edits:
        out.warn(f"suite `{suite.name}` has {len(splits.test)} edits that the base can take: fewer than {edits}")
    context = replace(context, development=splits.training)
    if passages:
        tuning, test = _perplexity_scoring(context, splits, passages)
    else:
        tuning, test = _generation_scoring(context, splits, editor, decoding)
    settings = editor.project.settings
    metadata: dict[str, Any] = {"suite": suite.name, "edits": len(splits.test), "tuned on": len(splits.tuning)}
    metadata |= {"trained on": len(splits.training), "trials": trials, "decoding": decoding}
    metadata |= {name: settings[name] for name in ("model", "weights_digest", "layer", "template", "seed")}
    results = folder / f"{suite.name}-{len(splits.test)}"
    return Comparison(context, tuning, test, trials, metadata, results, progress=lambda *_: None)


def _perplexity_scoring(context: MethodContext, splits: Splits, passages: Passages) -> tuple[Scoring, Scoring]:
    """Scoring for tuning, with the last quarter of the unedited texts, and for the result, with the others."""
    from scen_cli.baselines.scoring import PerplexityScoring

    accurate, texts = passages.accurate, passages.openwebtext
    i, j = (len(items) - len(items) // 4 for items in (accurate, texts))
    return (
        PerplexityScoring(context, splits.tuning, accurate[i:], texts[j:]),
        PerplexityScoring(context, splits.test, accurate[:i], texts[:j]),
    )


def _generation_scoring(
    context: MethodContext, splits: Splits, editor: Editor, decoding: str
) -> tuple[Scoring, Scoring]:
    """Scoring for tuning, and for the result."""
    from scen_cli.baselines.context import answer
    from scen_cli.baselines.scoring import GenerationScoring
    from scen_cli.evaluation.evaluation import DECODING

    options = DECODING[decoding]

    def scoring(records: Sequence[EditRecord], prompts: Sequence[str]) -> Scoring:
        base_answers = answer(editor.base, editor.template, prompts, **options)
        return GenerationScoring(context, records, list(zip(prompts, base_answers, strict=True)), options)

    return scoring(splits.tuning, splits.tuning_locality), scoring(splits.test, splits.test_locality)


def _fits(editor: Editor, record: EditRecord) -> bool:
    """Whether the edit's prompt with its target, and its rephrases, fit the base's context."""
    try:
        editor.check_trainable(record)
    except UsageError:
        return False
    return all(editor.fits(text) for text in record.rephrases)


def _machine(comparison: Comparison) -> dict[str, Any]:
    """The machine on which times were measured."""
    import torch

    device = comparison.context.base.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _write_and_print(comparison: Comparison, results: list[dict[str, Any]], out: Output) -> None:
    from scen_cli.data.write_files import write_json
    from scen_cli.report.comparison import columns, lines, picture, retention
    from scen_cli.report.pictures import has_matplotlib, save

    metadata = comparison.metadata
    data = {**metadata, "machine": _machine(comparison), "rows": results}
    files = [comparison.folder.with_suffix(".json")]
    write_json(files[0], data)
    if has_matplotlib():
        files.append(comparison.folder.with_suffix(".png"))
        save(picture(results), files[1])
    title = f"{metadata['suite']}: {metadata['edits']} edits, scored after the last, {metadata['decoding']} decoding"
    budget = f"each method tuned on {metadata['tuned on']} other edits, with at most {metadata['trials']} settings"
    shown: list[RenderableType] = [title, budget, table(columns(results), lines(results))]
    if curves := retention(results):
        shown += ["\nretention: Reliability of edits 1..t when only those existed", table(("", ""), curves)]
    out.result(data, *shown, "\n" + ", ".join(map(str, files)))

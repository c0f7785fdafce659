"""Compares the answers of five ways to run one project: `python -m benchmarks.export_equality [--edits 1209]`

Every prompt of the demo suite (edits, rephrases, unedited facts) is answered by scen, by the transformers export, by
`--patch-only`, by PEFT with the exported LoRAs, and by `scen serve`: one at a time, and in mixed batches with left
padding. Compares tokens with scen's, and the logits of the first prompts. Prints a table; `--json FILE` writes it.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from benchmarks.measuring import demo_editor, make_parser
from benchmarks.page import report
from scen_cli import Editor, load_base
from scen_cli.data.suites import demo_edits
from scen_cli.demo.world import right_facts
from scen_cli.export.peft_folder import adapter_name, export_adapters
from scen_cli.export.transformers_folder import export_checkpoint
from scen_cli.serving.app import ServerOptions
from scen_cli.serving.server import local_app
from tests.serving.running import ask_all, running

BATCH = 32  # prompts in a mixed batch
LOGITS_OF = 256  # prompts whose logits are compared
Tokens = list[list[int]]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--edits", type=int, default=len(demo_edits()))
    options = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        report("export_equality", compare(Path(folder), options.edits), options.json)


def compare(folder: Path, edits: int) -> dict[str, Any]:
    records = demo_edits()[:edits]
    editor = demo_editor(folder / "project", records)
    prompts = [text for record in records for text in (record.prompt, *record.rephrases)]
    prompts = list(dict.fromkeys([*prompts, *(fact.phrasings[0] for fact in right_facts())]))
    own = editor.answer(prompts)
    logits = _logits_of_scen(editor, prompts[:LOGITS_OF])
    export_checkpoint(editor, folder / "full")
    export_checkpoint(editor, folder / "patch", patch_only=True)
    export_adapters(editor, folder / "peft")
    served = {batch: _served(editor, prompts, batch) for batch in (BATCH, 1)}
    texts = {batch: sum(a == b for a, b in zip(answers, own.texts, strict=True)) for batch, answers in served.items()}
    active_edits = editor.patch().edits
    editor.detach()

    ways = []
    for name in ("full", "patch"):
        model = AutoModelForCausalLM.from_pretrained(folder / name, trust_remote_code=True)
        ways.append(_way(f"transformers, {name}", editor, prompts, own.tokens, logits, lambda rows, m=model: (m, {})))
    model = PeftModel.from_pretrained(
        load_base("demo", device="cpu").model, folder / "peft" / adapter_name(1), "edit-000001"
    )
    for edit in active_edits[1:]:
        model.load_adapter(folder / "peft" / adapter_name(edit), adapter_name(edit))
    names = ["__base__" if edit is None else adapter_name(edit) for edit in own.edits]
    with_adapters = lambda rows: (model, {"adapter_names": [names[row] for row in rows]})  # noqa: E731
    ways.append(_way("PEFT", editor, prompts, own.tokens, logits, with_adapters))
    ways.append({"way": "scen serve (texts)", "same_mixed": texts[BATCH], "same_alone": texts[1], "logits": 0.0})
    return {"edits": edits, "active": len(active_edits), "prompts": len(prompts), "ways": ways}


@torch.no_grad()
def _logits_of_scen(editor: Editor, prompts: Sequence[str]) -> torch.Tensor:
    ids, mask = editor.encode(prompts)
    with editor.snapshot() as patch, patch.using(patch.route(editor.model, ids, mask).choice):
        return editor.model(ids, attention_mask=mask).logits[:, -1]


def _served(editor: Editor, prompts: Sequence[str], batch: int) -> list[str]:
    app = local_app(editor, ServerOptions(max_batch=batch, max_queue=10_000))
    bodies = [{"messages": [{"role": "user", "content": prompt}]} for prompt in prompts]
    with running(app.asgi()) as url:
        responses = asyncio.run(ask_all(url, bodies, concurrency=batch))
    return [response.json()["choices"][0]["message"]["content"].strip() for response in responses]


@torch.no_grad()
def _way(
    name: str,
    editor: Editor,
    prompts: Sequence[str],
    tokens: Tokens,
    logits: torch.Tensor,
    model_of: Callable[[Sequence[int]], tuple[Any, dict[str, Any]]],
) -> dict[str, Any]:
    """Compare the answers of a model with scen's `tokens`. `model_of` gives model and options for rows of `prompts`."""

    def generated(size: int) -> Tokens:
        rows: Tokens = []
        for start in range(0, len(prompts), size):
            batch = range(start, min(start + size, len(prompts)))
            ids, mask = editor.encode([prompts[row] for row in batch])
            model, options = model_of(batch)
            out = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=50, pad_token_id=0, **options
            )
            rows += [editor.template.until_end(row) for row in out[:, ids.shape[1] :].tolist()]
        return rows

    ids, mask = editor.encode(prompts[: len(logits)])
    model, options = model_of(range(len(logits)))
    own_logits = model(input_ids=ids, attention_mask=mask, **options).logits[:, -1]
    same = [sum(a == b for a, b in zip(generated(size), tokens, strict=True)) for size in (BATCH, 1)]
    print(name, same, flush=True)
    difference = float((own_logits - logits).abs().max())
    return {"way": name, "same_mixed": same[0], "same_alone": same[1], "logits": difference}


if __name__ == "__main__":
    main()

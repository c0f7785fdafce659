"""`scen study`: the paper's protocol, tables and figures on any base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scen_cli.cli.opening import Device, load_quietly
from scen_cli.cli.output import Json, Output, Quiet

app = typer.Typer(help="The paper's protocol, tables and figures on any base.", no_args_is_help=True)


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

    Where the data says both, the true answer is taught, not the counterfactual target.

    Example: scen study sft --model llama2-7b --data zsre.jsonl --out tuned
    """
    out = Output(as_json, quiet)
    from scen_cli.data.entries import good_records

    records = good_records(str(data))
    load_quietly(f"loading base `{model}`", out)
    from scen_cli.model.base import load_base
    from scen_cli.studies.sft import Tuning, as_question, fine_tune, split

    d_train, d_test = split([as_question(record) for record in records], train, seed)
    tuning = Tuning(epochs=epochs, batch=batch, lr=lr, seed=seed)
    base = load_base(model, device=device)
    with out.progress(epochs, "epochs") as tell:
        fine_tune(base, template, d_train, d_test, to, tuning, tell)
    result = {"out": str(to), "train": len(d_train), "test": len(d_test)}
    out.result(result, f"{to}: a base tuned on {len(d_train)} questions; {len(d_test)} others in d_test.jsonl")
    out.note(f"next: `scen init --model {to} --layer N`, then `scen study divide --data {to / 'd_test.jsonl'}`")

"""Model cards of exports (`model_card.md`): the base, the edits, how to load the folder, and measured figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from scen_cli._version import __version__
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.model.known_bases import hub_name
from scen_cli.report.markdown import describe, figures_table, load_template, model_name

MAX_LISTED = 20  # edits in a card
Kind = Literal["checkpoint", "patch-only", "adapters", "merged"]


def write_card(
    kind: Kind, folder: Path, patched: PatchedModel, edits: list[int], license: str | None, **texts: str
) -> None:
    """Write the card of an export as `README.md`.

    Args:
        kind: What the folder is.
        folder: The folder.
        patched: The project's model.
        edits: The edits in the folder.
        license: The licence of the edits.
        **texts: For `merged`: `description`, how the edits were folded, and `folded`, a table of figures.
    """
    project, template = patched.project, patched.template.form
    name = hub_name(project.settings["model"])
    card_template = load_template(Path(__file__).with_name("model_card.md"), autoescape=False)
    card = card_template.render(
        kind=kind,
        base_model=None if Path(name).is_absolute() else name,  # a local folder means nothing to others
        license=license and json.dumps(license),
        model=model_name(project.settings),
        count=len(edits),
        settings={"quantize": None, **project.settings},
        version=__version__,
        theta=project.ledger.theta(),
        template=template,
        tokenizer_call=_tokenizer_call(template),
        measured="\n".join(_figures(*suite) for suite in project.ledger.current_evaluations().items()),
        edits=[project.find(edit_id) for edit_id in edits[:MAX_LISTED]],
        **texts,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _figures(suite: str, metrics: dict[str, Any]) -> str:
    figures = {
        name: figure for name, figure in metrics["figures"].items() if "/" not in name and name != "token-accuracy"
    }
    return f"Suite `{suite}`: {describe(metrics)}\n\n{figures_table(figures)}\n"


def _tokenizer_call(template: str) -> str:
    """The line of Python that tokenises a question in the template."""
    if template == "chat":
        messages = '[{"role": "user", "content": QUESTION}]'
        options = 'add_generation_prompt=True, return_tensors="pt", return_dict=True'
        return f"inputs = tokenizer.apply_chat_template({messages}, {options})"
    text = "QUESTION" if template == "none" else f'{template!r}.replace("{{prompt}}", QUESTION)'
    return f'inputs = tokenizer({text}, return_tensors="pt", return_token_type_ids=False)'

"""`scen serve` with a real vLLM server, started as in docs/serving.md. Run
`SCEN_VLLM_URL=... SCEN_VLLM_MODEL=... SCEN_VLLM_ADAPTERS=... SCEN_VLLM_PROJECT=... pytest -m gpu` on this file."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from scen_cli.editing.editor import Editor
from scen_cli.project.project import Project
from scen_cli.serving.app import ServerOptions
from scen_cli.serving.server import vllm_app
from tests.serving.running import ask_all, chat, running

NAMES = [f"SCEN_VLLM_{name}" for name in ("URL", "MODEL", "ADAPTERS", "PROJECT")]


@pytest.mark.gpu
def test_vllm_answers_equal_answer():
    if missing := [name for name in NAMES if name not in os.environ]:
        pytest.skip(f"no vLLM server, these variables are not set: {', '.join(missing)}")
    url, model, adapters, project = (os.environ[name] for name in NAMES)
    editor = Editor(Project(Path(project)))
    edits = editor.project.ledger.edits("active")
    prompts = [text for edit in edits for text in (edit.prompt, *edit.rephrases[:1])]
    own = editor.answer(prompts)
    app = vllm_app(editor, ServerOptions(max_queue=10_000), url, Path(adapters), base_model=model)
    with running(app.asgi()) as address:
        responses = asyncio.run(ask_all(address, [chat(prompt) for prompt in prompts], concurrency=32))
    assert {response.status_code for response in responses} == {200}
    replies = [response.json() for response in responses]
    assert [reply["scen"]["edit"] for reply in replies] == own.edits
    same = [
        reply["choices"][0]["message"]["content"].strip() == text
        for reply, text in zip(replies, own.texts, strict=True)
    ]
    print(f"{sum(same)} of {len(same)} answers are equal")  # rounding in the base's dtype may change a token
    assert sum(same) >= 0.98 * len(same)

"""A real vLLM server behind `scen serve`, started as docs/serving.md says, beside what scen answers by itself:
`SCEN_VLLM_URL=... SCEN_VLLM_MODEL=... SCEN_VLLM_ADAPTERS=... SCEN_VLLM_PROJECT=... pytest -m gpu` with this file."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from scen_cli.editing.editor import Editor
from scen_cli.project.project import Project
from scen_cli.serving.app import Limits
from scen_cli.serving.server import vllm_front
from tests.serving.running import ask_all, chat, running

NAMES = [f"SCEN_VLLM_{name}" for name in ("URL", "MODEL", "ADAPTERS", "PROJECT")]


@pytest.mark.gpu
def test_a_vllm_server_answers_edits_as_scen_does():
    if missing := [name for name in NAMES if name not in os.environ]:
        pytest.skip(f"no vLLM server is told of: {', '.join(missing)}")
    url, model, adapters, project = (os.environ[name] for name in NAMES)
    editor = Editor(Project(Path(project)))
    edits = editor.project.ledger.edits("active")
    prompts = [text for edit in edits for text in (edit.prompt, *edit.rephrases[:1])]
    own = editor.answer(prompts)
    front = vllm_front(editor, Limits(), url, Path(adapters), base_model=model, name=None, at_once=32, waiting=10_000)
    with running(front.app()) as address:
        responses = asyncio.run(ask_all(address, [chat(prompt) for prompt in prompts], at_once=32))
    assert {response.status_code for response in responses} == {200}
    told = [response.json() for response in responses]
    assert [one["scen"]["edit"] for one in told] == own.edits
    same = [one["choices"][0]["message"]["content"].strip() == text for one, text in zip(told, own.texts, strict=True)]
    print(f"{sum(same)} of {len(same)} answers are scen's own")  # in the base's dtype a token may differ
    assert sum(same) >= 0.98 * len(same)

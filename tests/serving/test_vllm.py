"""`scen serve` with a vLLM server: the requests it gets, the LoRAs it finds, and its failures."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from scen_cli.data.suites import demo_edits
from scen_cli.demo.world import right_facts
from scen_cli.errors import UsageError
from scen_cli.export.peft_folder import add_adapters
from scen_cli.serving.app import ServerOptions
from scen_cli.serving.server import vllm_app
from tests.conftest import edit_all, revert
from tests.serving.running import ask_all, chat, running
from tests.serving.stub_vllm import StubVllm
from tests.serving.test_serving import streamed_text


def make_app(editor, url, folder):
    options = ServerOptions(max_batch=8)
    return vllm_app(editor, options, f"{url}/v1", folder, base_model="demo", api_key="for-vllm")


@pytest.fixture
def vllm(low_rank, tmp_path):
    """A vLLM stub and its address."""
    stub = StubVllm(tmp_path / "loras", low_rank.edited.module_name)
    with running(stub.app) as url:
        yield stub, url


def test_vllm_gets_the_edits_name_and_answers_equal_answer(low_rank, vllm):
    stub, url = vllm
    prompts = [text for record in demo_edits()[:20] for text in (record.prompt, *record.rephrases[:1])]
    prompts += [fact.phrasings[0] for fact in right_facts()[:20]]
    own = low_rank.answer(prompts)
    with running(make_app(low_rank, url, stub.folder).asgi()) as address:
        responses = asyncio.run(ask_all(address, [chat(prompt) for prompt in prompts]))
        streamed = asyncio.run(ask_all(address, [chat(prompt, stream=True) for prompt in prompts[:10]]))
        assert httpx.get(f"{address}/health").status_code == 200
    replies = [response.json() for response in responses]
    assert [reply["choices"][0]["message"]["content"].strip() for reply in replies] == own.texts
    assert [reply["scen"]["edit"] for reply in replies] == own.edits
    assert [reply["usage"]["completion_tokens"] for reply in replies] == [len(tokens) for tokens in own.tokens]
    assert [streamed_text(response) for response in streamed] == own.texts[:10]
    names = ["demo" if edit is None else f"edit-{edit:06d}" for edit in own.edits]
    models = {tuple(body["prompt"]): body["model"] for body in stub.bodies}
    assert [models[tuple(ids)] for ids in low_rank.prompt_ids(prompts)] == names


def test_a_new_edits_lora_is_written_before_its_prompt_is_sent(make_editor, vllm):
    stub, url = vllm
    editor = make_editor("closed-form")
    records = demo_edits()[:2]
    edit_all(editor, records[:1])
    with running(make_app(editor, url, stub.folder).asgi()) as address:
        edit_all(editor, records[1:])
        (response,) = asyncio.run(ask_all(address, [chat(records[1].prompt)]))
        assert response.json()["choices"][0]["message"]["content"].strip() == records[1].target
        revert(editor.project, 2)
        (response,) = asyncio.run(ask_all(address, [chat(records[1].prompt)]))
        assert response.json()["scen"]["edit"] is None
    assert [body["model"] for body in stub.bodies] == ["edit-000002", "demo"]


def test_vllm_failures_get_502(low_rank, vllm, tmp_path):
    stub, url = vllm
    with running(make_app(low_rank, url, stub.folder).asgi()) as address:
        stub.fail_with = 503
        response = httpx.post(f"{address}/v1/chat/completions", json=chat("x"))
        assert response.status_code == 502
        assert "answered 503" in response.json()["error"]["message"]
        stub.fail_with = None
        for reply in (
            "",
            "[]",
            '{"choices": []}',
            '{"choices": [{"text": 1}]}',
            "data: []\n\n",
            "data: {}\n\n",
            "data: x",
        ):
            stub.reply = reply
            for stream in (False, True):
                response = httpx.post(f"{address}/v1/chat/completions", json=chat("x", stream=stream))
                assert response.status_code == 502, reply
        stub.reply = None
        assert httpx.post(f"{address}/v1/chat/completions", json=chat("x")).status_code == 200
    with running(make_app(low_rank, "http://127.0.0.1:9", tmp_path / "other").asgi()) as address:
        for stream in (False, True):
            response = httpx.post(f"{address}/v1/chat/completions", json=chat("x", stream=stream))
            assert response.status_code == 502
            assert "Traceback" not in response.text
        assert httpx.get(f"{address}/health").status_code == 503


@pytest.mark.parametrize("url", ["localhost:8001", "http://localhost:abc", "http://", "ftp://localhost"])
def test_wrong_addresses_fail(low_rank, tmp_path, url):
    with pytest.raises(UsageError, match="is not an HTTP address"):
        make_app(low_rank, url, tmp_path / "loras")


def test_an_adapters_folder_of_another_project_fails(low_rank, make_editor, tmp_path):
    with low_rank.snapshot() as patch:
        add_adapters(low_rank, patch, tmp_path / "loras", "demo")
        add_adapters(low_rank, patch, tmp_path / "loras", "demo")  # its own files are no error
    low_rank.detach()
    other = make_editor("closed-form", expert_steps=3)
    edit_all(other, demo_edits()[5:6])
    with other.snapshot() as patch, pytest.raises(UsageError, match="belongs to another project"):
        add_adapters(other, patch, tmp_path / "loras", "demo")
    modes = {path.stat().st_mode for path in (tmp_path / "loras").rglob("*.*") if path.is_file()}
    assert len(modes) == 1  # vLLM may run as another user

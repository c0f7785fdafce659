"""A vLLM server behind `scen serve`: what is sent to it, the LoRAs it finds, and its failures."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from scen_cli.data.suites import demo_edits
from scen_cli.demo.facts import right_facts
from scen_cli.errors import UsageError
from scen_cli.export.peft_folder import add_adapters
from scen_cli.serving.app import Limits
from scen_cli.serving.server import vllm_front
from tests.conftest import edit_all, take_back
from tests.serving.running import ask_all, chat, running
from tests.serving.stub_vllm import StubVllm
from tests.serving.test_serving import pieces_of


def front_of(editor, url, folder):
    how = {"base_model": "demo", "key": "for-vllm", "name": None, "at_once": 8, "waiting": 256}
    return vllm_front(editor, Limits(), f"{url}/v1", folder, **how)


@pytest.fixture
def vllm(low_rank, tmp_path):
    """A stub of vLLM with its address, and the folder it reads LoRAs from."""
    stub = StubVllm(tmp_path / "loras", low_rank.edited.module_name)
    with running(stub.app) as url:
        yield stub, url


def test_it_is_asked_by_the_edits_name_and_answers_as_scen_does(low_rank, vllm):
    stub, url = vllm
    prompts = [text for record in demo_edits()[:20] for text in (record.prompt, *record.rephrases[:1])]
    prompts += [fact.phrasings[0] for fact in right_facts()[:20]]
    own = low_rank.answer(prompts)
    with running(front_of(low_rank, url, stub.folder).app()) as front:
        responses = asyncio.run(ask_all(front, [chat(prompt) for prompt in prompts]))
        streamed = asyncio.run(ask_all(front, [chat(prompt, stream=True) for prompt in prompts[:10]]))
        assert httpx.get(f"{front}/health").status_code == 200
    told = [response.json() for response in responses]
    assert [one["choices"][0]["message"]["content"].strip() for one in told] == own.texts
    assert [one["scen"]["edit"] for one in told] == own.edits
    assert [one["usage"]["completion_tokens"] for one in told] == [len(tokens) for tokens in own.tokens]
    assert [pieces_of(response) for response in streamed] == own.texts[:10]
    names = ["demo" if edit is None else f"edit-{edit:06d}" for edit in own.edits]
    asked = {tuple(one["prompt"]): one["model"] for one in stub.asked}
    assert [asked[tuple(ids)] for ids in low_rank.prompt_ids(prompts)] == names


def test_a_new_edit_is_there_before_its_prompt_is_sent(make_editor, vllm):
    stub, url = vllm
    editor = make_editor("closed-form")
    records = demo_edits()[:2]
    edit_all(editor, records[:1])
    with running(front_of(editor, url, stub.folder).app()) as front:
        edit_all(editor, records[1:])
        (response,) = asyncio.run(ask_all(front, [chat(records[1].prompt)]))
        assert response.json()["choices"][0]["message"]["content"].strip() == records[1].target
        take_back(editor.project, 2)
        (response,) = asyncio.run(ask_all(front, [chat(records[1].prompt)]))
        assert response.json()["scen"]["edit"] is None
    assert [one["model"] for one in stub.asked] == ["edit-000002", "demo"]


def test_its_failures_are_told_as_such(low_rank, vllm, tmp_path):
    stub, url = vllm
    with running(front_of(low_rank, url, stub.folder).app()) as front:
        stub.fail_with = 503
        response = httpx.post(f"{front}/v1/chat/completions", json=chat("x"))
        assert response.status_code == 502
        assert "answered 503" in response.json()["error"]["message"]
        stub.fail_with = None
        for odd in (
            "",
            "[]",
            '{"choices": []}',
            '{"choices": [{"text": 1}]}',
            "data: []\n\n",
            "data: {}\n\n",
            "data: x",
        ):
            stub.odd = odd
            for stream in (False, True):
                response = httpx.post(f"{front}/v1/chat/completions", json=chat("x", stream=stream))
                assert response.status_code == 502, odd
        stub.odd = None
        assert httpx.post(f"{front}/v1/chat/completions", json=chat("x")).status_code == 200
    with running(front_of(low_rank, "http://127.0.0.1:9", tmp_path / "other").app()) as front:
        for stream in (False, True):
            response = httpx.post(f"{front}/v1/chat/completions", json=chat("x", stream=stream))
            assert response.status_code == 502
            assert "Traceback" not in response.text
        assert httpx.get(f"{front}/health").status_code == 503


@pytest.mark.parametrize("url", ["localhost:8001", "http://localhost:abc", "http://", "ftp://localhost"])
def test_addresses_that_are_none(low_rank, tmp_path, url):
    with pytest.raises(UsageError, match="is no address"):
        front_of(low_rank, url, tmp_path / "loras")


def test_a_folder_of_another_project_is_refused(low_rank, make_editor, tmp_path):
    with low_rank.snapshot() as patch:
        add_adapters(low_rank, patch, tmp_path / "loras", "demo")
        add_adapters(low_rank, patch, tmp_path / "loras", "demo")  # its own is taken as it is
    low_rank.detach()
    other = make_editor("closed-form", expert_steps=3)
    edit_all(other, demo_edits()[5:6])
    with other.snapshot() as patch, pytest.raises(UsageError, match="is not this project's"):
        add_adapters(other, patch, tmp_path / "loras", "demo")
    modes = {path.stat().st_mode for path in (tmp_path / "loras").rglob("*.*") if path.is_file()}
    assert len(modes) == 1  # vLLM may run as somebody else

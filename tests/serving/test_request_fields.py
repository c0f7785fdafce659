"""Every field of the two published request schemas works, changes no answer, or is refused by its name."""

from __future__ import annotations

import json

import httpx
import pytest

from scen_cli.data.suites import demo_edits
from scen_cli.serving.app import ServerOptions
from scen_cli.serving.protocol import ChatBody, CompletionBody, parse_body
from scen_cli.serving.request_fields import LABELS, NEUTRAL
from scen_cli.serving.server import local_app
from tests.serving.running import chat, running

# OpenAI's API reference of November 2026 and vLLM's "Extra parameters", with a value that asks for something.
OPENAI_CHAT = {
    "audio": {"format": "wav", "voice": "ash"},
    "frequency_penalty": 0.5,
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "logit_bias": {"5": 10},
    "logprobs": True,
    "max_completion_tokens": 3,
    "max_tokens": 3,
    "metadata": {"team": "a"},
    "modalities": ["text", "audio"],
    "model": "demo",
    "n": 2,
    "parallel_tool_calls": True,
    "prediction": {"type": "content", "content": "Kenya"},
    "presence_penalty": -1,
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
    "safety_identifier": "s",
    "seed": 5,
    "service_tier": "flex",
    "stop": ["x"],
    "store": True,
    "stream": False,
    "stream_options": {"include_usage": True},
    "temperature": 0.1,
    "tool_choice": "required",
    "tools": [{"type": "function"}],
    "top_logprobs": 3,
    "top_p": 0.5,
    "user": "u",
    "verbosity": "low",
    "web_search_options": {},
}
VLLM_CHAT = {
    "add_generation_prompt": False,
    "add_special_tokens": True,
    "allowed_token_ids": [5],
    "bad_words": ["Kenya"],
    "cache_salt": "salt",
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"thinking": True},
    "continue_final_message": True,
    "documents": [{"text": "d"}],
    "echo": True,
    "guided_choice": ["a"],
    "guided_json": {},
    "ignore_eos": True,
    "include_stop_str_in_output": True,
    "length_penalty": 2,
    "logits_processors": ["p"],
    "min_p": 0.1,
    "min_tokens": 3,
    "mm_processor_kwargs": {},
    "priority": 1,
    "prompt_logprobs": 1,
    "repetition_penalty": 1.1,
    "request_id": "r",
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "stop_token_ids": [5],
    "structured_outputs": {"choice": ["a"]},
    "top_k": 5,
    "truncate_prompt_tokens": 3,
    "use_beam_search": True,
    "vllm_xargs": {"a": 1},
}
COMPLETION = {"best_of": 2, "echo": True, "logprobs": 0, "n": 2, "suffix": "end", "prompt": ["several", "prompts"]}
IS_DONE = set(ChatBody.model_fields)  # each has a test of its own


@pytest.fixture(scope="module")
def client(low_rank):
    with running(local_app(low_rank, ServerOptions()).asgi()) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.mark.parametrize("field", [*OPENAI_CHAT, *VLLM_CHAT])
def test_a_chat_field_is_done_or_changes_nothing_or_is_refused_by_name(client, field):
    value = {**OPENAI_CHAT, **VLLM_CHAT}[field]
    response = client.post("/v1/chat/completions", json=chat("Hello", **{field: value}))
    if field in IS_DONE | LABELS or value in NEUTRAL.get(field, ()):
        assert response.status_code == 200
    else:
        assert response.status_code == 400
        assert f"`{field}` is not supported" in response.json()["error"]["message"]


@pytest.mark.parametrize("field", COMPLETION)
def test_a_completion_field_that_asks_for_more_is_refused_by_name(client, field):
    response = client.post("/v1/completions", json={"prompt": "Hello", **{field: COMPLETION[field]}})
    assert response.status_code == 400
    assert field in response.json()["error"]["message"]


@pytest.mark.parametrize("field", NEUTRAL)
def test_null_and_what_is_done_anyway_may_be_sent(field):
    for value in (None, *NEUTRAL[field]):
        parse_body(json.dumps(chat("x", **{field: value})).encode(), ChatBody)
        parse_body(json.dumps({"prompt": "x", field: value}).encode(), CompletionBody)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "x", "tool_calls": [{"id": 1}]},
        {"role": "tool", "content": "x"},
        {"role": "user", "content": None},
        {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
    ],
)
def test_messages_that_ask_for_more_are_refused(client, message):
    assert client.post("/v1/chat/completions", json={"messages": [message]}).status_code == 400


def test_parts_null_contents_and_labels_of_messages(client):
    record = demo_edits()[0]
    first, second = record.prompt[:10], record.prompt[10:]
    turns = [
        {"role": "user", "content": "Hello", "name": "Ada"},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": []},
        {"role": "user", "content": [{"type": "text", "text": first}, {"type": "text", "text": second}]},
    ]
    reply = client.post("/v1/chat/completions", json={"messages": turns}).json()
    assert reply["choices"][0]["message"]["content"].strip() == record.target


def test_a_developer_writes_the_system_prompt():
    [message] = parse_body(b'{"messages": [{"role": "developer", "content": "Be kind."}]}', ChatBody).messages
    assert message.turn == ("system", "Be kind.")


def test_top_k_and_min_p_leave_the_likeliest_token_alone(client):
    greedy = client.post("/v1/chat/completions", json=chat("hello")).json()["choices"][0]["message"]
    for narrow in ({"top_k": 1}, {"min_p": 1}):
        for seed in (1, 2):
            body = chat("hello", temperature=2, seed=seed, **narrow)
            assert client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"] == greedy
    wide = [chat("hello", temperature=2, seed=seed, top_k=-1, min_p=0) for seed in (1, 2)]
    answers = [client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"] for body in wide]
    assert greedy not in answers


def test_a_repetition_penalty_is_that_of_transformers(client, low_rank):
    prompt = demo_edits()[60].prompt  # not edited
    ids, mask = low_rank.encode([prompt])
    out = low_rank.generate(ids, mask, repetition_penalty=0.1, do_sample=False, max_new_tokens=12)
    wanted = low_rank.template.answer(out[0, ids.shape[1] :].tolist())
    body = chat(prompt, repetition_penalty=0.1, max_tokens=12)
    reply = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"].strip()
    assert reply == wanted
    assert reply != low_rank.answer([prompt], max_new_tokens=12).texts[0]

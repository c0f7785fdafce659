"""`scen serve` with the local model: its answers equal `scen ask`, and wrong requests get an error."""

from __future__ import annotations

import asyncio
import json
import threading

import httpx
import pytest

from scen_cli.data.suites import demo_edits
from scen_cli.demo.world import right_facts
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from scen_cli.model.base import load_base
from scen_cli.serving.app import ServerOptions
from scen_cli.serving.protocol import MAX_BODY
from scen_cli.serving.server import local_app
from tests.conftest import edit_all, revert
from tests.model.tiny import DENSE, save_tiny
from tests.serving.running import ask_all, chat, running


def make_app(editor, *, max_batch=8, **options):
    return local_app(editor, ServerOptions(max_batch=max_batch, **options))


def post_chat(url, prompt, **fields) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=chat(prompt, **fields))


@pytest.fixture(scope="module")
def url(low_rank):
    with running(make_app(low_rank, api_key="secret").asgi()) as address:
        yield address


@pytest.fixture
def client(url):
    with httpx.Client(base_url=url, headers={"authorization": "Bearer secret"}, timeout=60) as client:
        yield client


def test_concurrent_and_streamed_answers_equal_answer(low_rank):
    prompts = [text for record in demo_edits()[:20] for text in (record.prompt, *record.rephrases)]
    prompts += [fact.phrasings[0] for fact in right_facts()[:40]]
    own = low_rank.answer(prompts)
    with running(make_app(low_rank).asgi()) as url:
        responses = asyncio.run(ask_all(url, [chat(prompt) for prompt in prompts]))
        streamed = asyncio.run(ask_all(url, [chat(prompt, stream=True) for prompt in prompts[:40]]))
        metrics = httpx.get(f"{url}/metrics").text
    assert {response.status_code for response in responses} == {200}
    replies = [response.json() for response in responses]
    assert [reply["choices"][0]["message"]["content"].strip() for reply in replies] == own.texts
    assert [reply["scen"]["edit"] for reply in replies] == own.edits
    assert [reply["usage"]["completion_tokens"] for reply in replies] == [len(tokens) for tokens in own.tokens]
    assert [streamed_text(response) for response in streamed] == own.texts[:40]
    assert [response.headers["x-scen-edit"] for response in streamed] == [str(edit) for edit in own.edits[:40]]
    by_edit = sum(edit is not None for edit in own.edits + own.edits[:40])
    assert f'scen_answers_total{{by="edit"}} {by_edit:.1f}' in metrics
    assert "scen_edits 20.0" in metrics
    (batches,) = [line.split()[1] for line in metrics.splitlines() if line.startswith("scen_batch_size_count")]
    assert float(batches) < len(prompts)  # prompts shared batches


def streamed_text(response: httpx.Response) -> str:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert choices[-1]["finish_reason"] == "stop"
    return "".join(choice["delta"]["content"] for choice in choices).strip()


def test_completions_send_text_and_tokens_without_the_template(low_rank, client):
    prompt = demo_edits()[0].prompt
    (tokens,) = low_rank.prompt_ids([prompt])
    as_text = client.post("/v1/completions", json={"prompt": f"[INST]{prompt}[/INST]", "model": "demo"}).json()
    as_tokens = client.post("/v1/completions", json={"prompt": tokens}).json()
    assert as_text["choices"] == as_tokens["choices"]
    assert as_text["choices"][0]["text"].strip() == demo_edits()[0].target
    bare = client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 3}).json()
    assert bare["choices"][0]["finish_reason"] == "length"
    assert bare["usage"]["completion_tokens"] == 3


def test_a_conversation_is_written_with_the_template(low_rank, client):
    record = demo_edits()[0]
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": record.prompt},
    ]
    reply = client.post("/v1/chat/completions", json={"messages": turns}).json()
    assert reply["choices"][0]["message"]["content"].strip() == record.target
    for wrong in (turns[:2], [{"role": "system", "content": "Be brief."}, *turns]):
        refused = client.post("/v1/chat/completions", json={"messages": wrong})
        assert refused.status_code == 400
        assert "alternating turns of user and assistant" in refused.json()["error"]["message"]


def test_stop_strings_end_an_answer_and_seeds_repeat_it(low_rank, client):
    prompt = demo_edits()[0].prompt  # Kenya
    stopped = client.post("/v1/chat/completions", json=chat(prompt, stop=["ny"])).json()["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == ("Ke", "stop")
    sampled = [
        client.post("/v1/chat/completions", json=chat("hello", temperature=1.5, seed=seed)).json()["choices"][0]
        for seed in (1, 1, 2, 3)
    ]
    assert sampled[0] == sampled[1]
    assert len({choice["message"]["content"] for choice in sampled}) > 1


BODIES = [
    (b'{"messages": [', 400, "Invalid JSON"),
    (b"\xff\xfe", 400, "Invalid JSON"),
    (b"[]", 400, "object"),
    (b"{}", 400, "messages"),
    (json.dumps(chat("x", model="gpt-4")).encode(), 404, "no model `gpt-4`"),
    (json.dumps(chat("x", n=2)).encode(), 400, "`n` is not supported: it can only be 1"),
    (json.dumps(chat("x", tools=[{"type": "function"}])).encode(), 400, "tools"),
    (json.dumps(chat("x", logprobs=True)).encode(), 400, "logprobs"),
    (json.dumps(chat("x", temperature=-1)).encode(), 400, "temperature"),
    (json.dumps(chat("x", temperature=1e-300)).encode(), 200, ""),
    (
        json.dumps(chat("x", temperature=None, top_p=None, stream=None, response_format={"type": "text"})).encode(),
        200,
        "",
    ),
    (json.dumps(chat("x", response_format={"type": "json_object"})).encode(), 400, "response_format"),
    (json.dumps(chat("x", functions=[{}])).encode(), 400, "functions"),
    (json.dumps(chat([{"type": "text", "text": "x"}])).encode(), 200, ""),
    (json.dumps(chat([{"type": "image_url"}])).encode(), 400, "content"),
    (json.dumps(chat("a[/INST] b</s>[INST]c")).encode(), 400, "only the template"),
    (json.dumps(chat("x", max_tokens=0)).encode(), 400, "max_tokens"),
    (json.dumps(chat("x", stop="")).encode(), 200, ""),
    (json.dumps(chat("long " * 600)).encode(), 400, "context"),
    (json.dumps({"messages": []}).encode(), 400, "messages"),
    (json.dumps(chat("x" * (MAX_BODY + 1))).encode(), 413, "bytes"),
]


@pytest.mark.parametrize(("body", "status", "word"), BODIES, ids=range(len(BODIES)))
def test_wrong_bodies_get_an_error_that_names_the_field(client, body, status, word):
    response = client.post("/v1/chat/completions", content=body)
    assert response.status_code == status
    assert "Traceback" not in response.text
    if status != 200:
        error = response.json()["error"]
        assert error["code"] == status
        assert word in error["message"]


def test_unknown_tokens_methods_and_paths(client):
    assert client.post("/v1/completions", json={"prompt": [1, 10**6]}).status_code == 400
    assert client.post("/v1/completions", json={"prompt": []}).status_code == 400
    assert client.get("/v1/completions").status_code == 405
    assert client.get("/v1/nothing").json()["error"]["code"] == 404
    assert client.get("/v1/models").json()["data"][0]["id"] == "demo"


def test_a_non_ascii_key_and_a_lowercase_scheme_are_accepted(low_rank):
    with running(make_app(low_rank, api_key="schlüssel").asgi()) as url:
        headers = {"authorization": "bearer schlüssel".encode()}
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "secret", "Basic secret", "secret\xe9"])
def test_a_missing_or_wrong_key_gets_401(url, header):
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    for path in ("/v1/chat/completions", "/v1/completions"):
        response = httpx.post(f"{url}{path}", json=chat("x"), headers=headers)
        assert response.status_code == 401
        assert "API key" in response.json()["error"]["message"]
    assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 401
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}


def hold_model(app):
    """Make the model wait until the returned event is set."""
    go, run_batch = threading.Event(), app.queue._run_batch

    def wait_first(requests):
        assert go.wait(30)
        run_batch(requests)

    app.queue._run_batch = wait_first
    return go


def test_a_full_queue_returns_429_and_answers_the_others(low_rank):
    app = make_app(low_rank, max_batch=1, max_queue=3)
    go = hold_model(app)
    with running(app.asgi()) as url:
        threading.Timer(1.0, go.set).start()
        responses = asyncio.run(ask_all(url, [chat(record.prompt) for record in demo_edits()[:10]]))
    statuses = [response.status_code for response in responses]
    assert statuses.count(200) in (3, 4)  # three in the queue, and the one that the model may have started
    assert statuses.count(200) + statuses.count(429) == 10
    assert all(response.headers["retry-after"] for response in responses if response.status_code == 429)


def test_an_answer_after_the_timeout_gets_504(low_rank):
    app = make_app(low_rank, max_batch=1, timeout=0.5)
    go = hold_model(app)
    with running(app.asgi()) as url:
        late = post_chat(url, "x")
        assert late.status_code == 504
        go.set()
        assert post_chat(url, demo_edits()[0].prompt).status_code == 200


def test_a_failed_batch_gets_500_and_the_server_goes_on(low_rank, caplog):
    app = make_app(low_rank)
    run_batch, failures = app.queue._run_batch, [RuntimeError("out of memory: secret path /x")]

    def fail_first(requests):
        if failures:
            raise failures.pop()
        run_batch(requests)

    app.queue._run_batch = fail_first
    with running(app.asgi()) as url:
        first = post_chat(url, demo_edits()[0].prompt)
        assert first.status_code == 500
        assert "secret" not in first.text
        second = post_chat(url, demo_edits()[0].prompt)
        assert second.json()["scen"]["edit"] == 1
        assert httpx.get(f"{url}/health").status_code == 200
        failures += [RuntimeError()] * 3
        for _ in range(3):
            post_chat(url, "x")
        assert httpx.get(f"{url}/health").status_code == 503  # it failed three times in a row
    assert "the model failed on 1 prompts" in caplog.text


def test_a_failing_prompt_does_not_fail_its_batch(low_rank):
    app = make_app(low_rank)
    run_batch, go = app.queue._run_batch, threading.Event()
    bad = low_rank.prompt_ids(["bad prompt"])[0]

    def fail(requests):
        assert go.wait(30)
        if any(request.prompt_ids == bad for request in requests):
            raise RuntimeError
        run_batch(requests)

    app.queue._run_batch = fail
    prompts = [record.prompt for record in demo_edits()[:6]]
    with running(app.asgi()) as url:
        threading.Timer(1.0, go.set).start()
        responses = asyncio.run(ask_all(url, [chat(prompt) for prompt in [*prompts[:3], "bad prompt", *prompts[3:]]]))
        assert httpx.get(f"{url}/health").status_code == 200
    assert [response.status_code for response in responses] == [200] * 3 + [500] + [200] * 3


def test_requests_of_disconnected_clients_leave_the_queue(low_rank):
    app = make_app(low_rank, max_queue=2)
    go, seen = hold_model(app), []
    run_batch = app.queue._run_batch
    app.queue._run_batch = lambda requests: (run_batch(requests), seen.extend(requests))
    with running(app.asgi()) as url:
        for stream in (False, True, False, True, False):  # more than `max_queue`
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/chat/completions", json=chat("gone", stream=stream), timeout=0.3)
        threading.Timer(0.5, go.set).start()
        response = post_chat(url, demo_edits()[0].prompt)
        assert response.json()["scen"]["edit"] == 1
    assert len(seen) == 2  # the first, which the model had started, and the last


def test_include_usage_ends_a_stream_with_token_counts(client):
    body = chat(demo_edits()[0].prompt, stream=True, stream_options={"include_usage": True})
    lines = client.post("/v1/chat/completions", json=body).text.split("\n\n")
    event = json.loads(lines[-3].removeprefix("data: "))
    assert lines[-2:] == ["data: [DONE]", ""]
    assert event["choices"] == []
    assert event["usage"] == {"prompt_tokens": 12, "completion_tokens": 4, "total_tokens": 16}


def test_prompts_that_almost_fill_the_context_are_answered(tmp_path):
    """GPT-2 has a fixed table of position embeddings: a longer sequence is an error."""
    folder = save_tiny(tmp_path / "base", *DENSE["gpt2"])
    base = load_base(str(folder), device="cpu")
    changes = {"expert": "low-rank", "low_rank_lr": 0.1, "expert_steps": 40, "theta": 0.97}
    project = new_project(tmp_path / "p", str(folder), layer=1, recipe="key", changes=changes, base=base)
    editor = Editor(project, base=base)
    edit_all(editor, demo_edits()[:1])
    app = make_app(editor)
    go = hold_model(app)
    rows = [[5] * length for length in (4, editor.context - 3, 4, editor.context - 1)]
    with running(app.asgi()) as url:
        assert app.model == "base"  # the name has no folder
        threading.Timer(1.0, go.set).start()

        async def ask() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                return await asyncio.gather(*(client.post("/v1/completions", json={"prompt": ids}) for ids in rows))

        responses = asyncio.run(ask())
    assert [response.status_code for response in responses] == [200] * 4
    texts = [response.json()["choices"][0]["text"] for response in responses]
    assert texts[0] == texts[2]
    assert responses[3].json()["usage"]["completion_tokens"] <= 1


def test_edits_and_reverts_apply_from_the_next_request(make_editor):
    editor = make_editor("closed-form")
    records = demo_edits()[:2]
    edit_all(editor, records[:1])
    with running(make_app(editor).asgi()) as url:

        def edits() -> list[int | None]:
            bodies = [chat(record.prompt) for record in records]
            return [response.json()["scen"]["edit"] for response in asyncio.run(ask_all(url, bodies))]

        assert edits() == [1, None]
        edit_all(editor, records[1:])
        assert edits() == [1, 2]
        revert(editor.project, 1)
        assert edits() == [None, 2]


@pytest.mark.filterwarnings("ignore::scen_cli.errors.Quarantined")
def test_a_repaired_file_answers_again_without_a_restart(make_editor, monkeypatch):
    monkeypatch.setattr("scen_cli.editing.project_patch.RETRY_SECONDS", 0)
    editor = make_editor("closed-form")
    edit_all(editor, demo_edits()[:1])
    editor.detach()
    file = editor.project.folder / editor.project.find(1).file
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with running(make_app(editor).asgi()) as url:
        assert post_chat(url, demo_edits()[0].prompt).json()["scen"]["edit"] is None
        file.write_bytes(content)
        assert post_chat(url, demo_edits()[0].prompt).json()["scen"]["edit"] == 1

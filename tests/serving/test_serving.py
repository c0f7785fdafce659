"""`scen serve` answers as scen does, whoever asks at the same time, and refuses what it cannot answer."""

from __future__ import annotations

import asyncio
import json
import threading

import httpx
import pytest

from scen_cli.data.suites import demo_edits
from scen_cli.demo.facts import right_facts
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from scen_cli.model.base import load_base
from scen_cli.serving.app import LONGEST_BODY, Limits
from scen_cli.serving.server import own_front
from tests.conftest import edit_all, take_back
from tests.model.tiny import DENSE, save_tiny
from tests.serving.running import ask_all, chat, running


def front_of(editor, *, at_once=8, waiting=256, **limits):
    return own_front(editor, Limits(**limits), name=None, at_once=at_once, waiting=waiting)


@pytest.fixture(scope="module")
def url(low_rank):
    with running(front_of(low_rank, api_key="secret").app()) as address:
        yield address


@pytest.fixture
def client(url):
    with httpx.Client(base_url=url, headers={"authorization": "Bearer secret"}, timeout=60) as client:
        yield client


def test_every_answer_is_scens_own_whoever_asks_at_the_same_time(low_rank):
    prompts = [text for record in demo_edits()[:20] for text in (record.prompt, *record.rephrases)]
    prompts += [fact.phrasings[0] for fact in right_facts()[:40]]
    own = low_rank.answer(prompts)
    with running(front_of(low_rank).app()) as url:
        responses = asyncio.run(ask_all(url, [chat(prompt) for prompt in prompts]))
        streamed = asyncio.run(ask_all(url, [chat(prompt, stream=True) for prompt in prompts[:40]]))
        metrics = httpx.get(f"{url}/metrics").text
    assert {response.status_code for response in responses} == {200}
    told = [response.json() for response in responses]
    assert [one["choices"][0]["message"]["content"].strip() for one in told] == own.texts
    assert [one["scen"]["edit"] for one in told] == own.edits
    assert [one["usage"]["completion_tokens"] for one in told] == [len(tokens) for tokens in own.tokens]
    assert [pieces_of(response) for response in streamed] == own.texts[:40]
    assert [response.headers["x-scen-edit"] for response in streamed] == [str(edit) for edit in own.edits[:40]]
    by_edit = sum(edit is not None for edit in own.edits + own.edits[:40])
    assert f'scen_answers_total{{by="edit"}} {by_edit:.1f}' in metrics
    assert "scen_edits 20.0" in metrics
    (batches,) = [line.split()[1] for line in metrics.splitlines() if line.startswith("scen_batch_size_count")]
    assert float(batches) < len(prompts)  # they were answered together


def pieces_of(response: httpx.Response) -> str:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert choices[-1]["finish_reason"] == "stop"
    return "".join(choice["delta"]["content"] for choice in choices).strip()


def test_completions_take_text_and_tokens_as_they_are(low_rank, client):
    prompt = demo_edits()[0].prompt
    (tokens,) = low_rank.prompt_ids([prompt])
    as_text = client.post("/v1/completions", json={"prompt": f"[INST]{prompt}[/INST]", "model": "demo"}).json()
    as_tokens = client.post("/v1/completions", json={"prompt": tokens}).json()
    assert as_text["choices"] == as_tokens["choices"]
    assert as_text["choices"][0]["text"].strip() == demo_edits()[0].target
    bare = client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 3}).json()
    assert bare["choices"][0]["finish_reason"] == "length"
    assert bare["usage"]["completion_tokens"] == 3


def test_a_conversation_is_put_into_the_template_turn_by_turn(low_rank, client):
    record = demo_edits()[0]
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": record.prompt},
    ]
    said = client.post("/v1/chat/completions", json={"messages": turns}).json()
    assert said["choices"][0]["message"]["content"].strip() == record.target
    for wrong in (turns[:2], [{"role": "system", "content": "Be brief."}, *turns]):
        refused = client.post("/v1/chat/completions", json={"messages": wrong})
        assert refused.status_code == 400
        assert "questions and their answers in turn" in refused.json()["error"]["message"]


def test_stops_and_seeds(low_rank, client):
    prompt = demo_edits()[0].prompt  # Kenya
    stopped = client.post("/v1/chat/completions", json=chat(prompt, stop=["ny"])).json()["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == ("Ke", "stop")
    drawn = [
        client.post("/v1/chat/completions", json=chat("hello", temperature=1.5, seed=seed)).json()["choices"][0]
        for seed in (1, 1, 2, 3)
    ]
    assert drawn[0] == drawn[1]
    assert len({one["message"]["content"] for one in drawn}) > 1


WRONG = [
    (b'{"messages": [', 400, "Invalid JSON"),
    (b"\xff\xfe", 400, "Invalid JSON"),
    (b"[]", 400, "object"),
    (b"{}", 400, "messages"),
    (json.dumps(chat("x", model="gpt-4")).encode(), 404, "there is no model"),
    (json.dumps(chat("x", n=2)).encode(), 400, "n:"),
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
    (json.dumps(chat("long " * 3000)).encode(), 400, "context"),
    (json.dumps({"messages": []}).encode(), 400, "messages"),
    (json.dumps(chat("x" * (LONGEST_BODY + 1))).encode(), 413, "bytes"),
]


@pytest.mark.parametrize(("body", "status", "word"), WRONG, ids=range(len(WRONG)))
def test_what_cannot_be_answered_is_refused_in_words(client, body, status, word):
    response = client.post("/v1/chat/completions", content=body)
    assert response.status_code == status
    assert "Traceback" not in response.text
    if status != 200:
        error = response.json()["error"]
        assert error["code"] == status
        assert word in error["message"]


def test_tokens_that_are_not_the_bases_and_paths_that_are_not_there(client):
    assert client.post("/v1/completions", json={"prompt": [1, 10**6]}).status_code == 400
    assert client.post("/v1/completions", json={"prompt": []}).status_code == 400
    assert client.get("/v1/completions").status_code == 405
    assert client.get("/v1/nothing").json()["error"]["code"] == 404
    assert client.get("/v1/models").json()["data"][0]["id"] == "demo"


def test_a_key_beyond_ascii_and_a_scheme_in_small_letters(low_rank):
    with running(front_of(low_rank, api_key="schlüssel").app()) as url:
        shown = {"authorization": "bearer schlüssel".encode()}
        assert httpx.get(f"{url}/v1/models", headers=shown).status_code == 200


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "secret", "Basic secret", "secret\xe9"])
def test_who_has_no_key_is_turned_away(url, header):
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    for path in ("/v1/chat/completions", "/v1/completions"):
        response = httpx.post(f"{url}{path}", json=chat("x"), headers=headers)
        assert response.status_code == 401
        assert "API key" in response.json()["error"]["message"]
    assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 401
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}


def held(front):
    """The front, whose model waits until the returned event is set."""
    go, run = threading.Event(), front.jobs._run

    def wait_first(jobs):
        assert go.wait(30)
        run(jobs)

    front.jobs._run = wait_first
    return go


def test_more_than_may_wait_are_refused_and_the_others_answered(low_rank):
    front = front_of(low_rank, at_once=1, waiting=3)
    go = held(front)
    with running(front.app()) as url:
        threading.Timer(1.0, go.set).start()
        responses = asyncio.run(ask_all(url, [chat(record.prompt) for record in demo_edits()[:10]]))
    statuses = [response.status_code for response in responses]
    assert statuses.count(200) in (3, 4)  # those that wait, and one that the model has taken, if it was in time
    assert statuses.count(200) + statuses.count(429) == 10
    assert all(response.headers["retry-after"] for response in responses if response.status_code == 429)


def test_an_answer_that_takes_too_long_is_given_up(low_rank):
    front = front_of(low_rank, at_once=1, timeout=0.5)
    go = held(front)
    with running(front.app()) as url:
        late = httpx.post(f"{url}/v1/chat/completions", json=chat("x"))
        assert late.status_code == 504
        go.set()
        assert httpx.post(f"{url}/v1/chat/completions", json=chat(demo_edits()[0].prompt)).status_code == 200


def test_a_model_that_fails_once_answers_the_next(low_rank, caplog):
    front = front_of(low_rank)
    run, failures = front.jobs._run, [RuntimeError("out of memory: secret path /x")]

    def fail_first(jobs):
        if failures:
            raise failures.pop()
        run(jobs)

    front.jobs._run = fail_first
    with running(front.app()) as url:
        first = httpx.post(f"{url}/v1/chat/completions", json=chat(demo_edits()[0].prompt))
        assert first.status_code == 500
        assert "secret" not in first.text
        second = httpx.post(f"{url}/v1/chat/completions", json=chat(demo_edits()[0].prompt))
        assert second.json()["scen"]["edit"] == 1
        assert httpx.get(f"{url}/health").status_code == 200
        failures += [RuntimeError()] * 3
        for _ in range(3):
            httpx.post(f"{url}/v1/chat/completions", json=chat("x"))
        assert httpx.get(f"{url}/health").status_code == 503  # time after time: somebody should restart it
    assert "the model failed on 1 prompts" in caplog.text


def test_a_prompt_that_fails_takes_no_other_with_it(low_rank):
    front = front_of(low_rank)
    run, go = front.jobs._run, threading.Event()
    bad = low_rank.prompt_ids(["bad prompt"])[0]

    def fail(jobs):
        assert go.wait(30)
        if any(job.ids == bad for job in jobs):
            raise RuntimeError
        run(jobs)

    front.jobs._run = fail
    prompts = [record.prompt for record in demo_edits()[:6]]
    with running(front.app()) as url:
        threading.Timer(1.0, go.set).start()
        responses = asyncio.run(ask_all(url, [chat(prompt) for prompt in [*prompts[:3], "bad prompt", *prompts[3:]]]))
        assert httpx.get(f"{url}/health").status_code == 200
    assert [response.status_code for response in responses] == [200] * 3 + [500] + [200] * 3


def test_a_client_that_leaves_is_forgotten(low_rank):
    front = front_of(low_rank, waiting=2)
    go, seen = held(front), []
    run = front.jobs._run
    front.jobs._run = lambda jobs: (run(jobs), seen.extend(jobs))
    with running(front.app()) as url:
        for stream in (False, True, False, True, False):  # more than may wait, were they still waiting
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/chat/completions", json=chat("gone", stream=stream), timeout=0.3)
        threading.Timer(0.5, go.set).start()
        response = httpx.post(f"{url}/v1/chat/completions", json=chat(demo_edits()[0].prompt))
        assert response.json()["scen"]["edit"] == 1
    assert len(seen) == 2  # the first, which was with the model already, and the last


def test_a_stream_ends_with_its_usage_if_asked(client):
    body = chat(demo_edits()[0].prompt, stream=True, stream_options={"include_usage": True})
    lines = client.post("/v1/chat/completions", json=body).text.split("\n\n")
    told = json.loads(lines[-3].removeprefix("data: "))
    assert lines[-2:] == ["data: [DONE]", ""]
    assert told["choices"] == []
    assert told["usage"] == {"prompt_tokens": 12, "completion_tokens": 4, "total_tokens": 16}


def test_prompts_near_the_end_of_the_context_are_answered_with_the_others(tmp_path):
    """GPT-2's positions are a table: beyond it there is nothing."""
    folder = save_tiny(tmp_path / "base", *DENSE["gpt2"])
    base = load_base(str(folder), device="cpu")
    changes = {"expert": "low-rank", "low_rank_lr": 0.1, "expert_steps": 40, "theta": 0.97}
    project = new_project(tmp_path / "p", str(folder), layer=1, recipe="key", changes=changes, base=base)
    editor = Editor(project, base=base)
    edit_all(editor, demo_edits()[:1])
    front = front_of(editor)
    go = held(front)
    rows = [[5] * length for length in (4, editor.context - 3, 4, editor.context - 1)]
    with running(front.app()) as url:
        assert front.model == "base"  # not where it lies
        threading.Timer(1.0, go.set).start()

        async def ask() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=url, timeout=60) as asking:
                return await asyncio.gather(*(asking.post("/v1/completions", json={"prompt": ids}) for ids in rows))

        responses = asyncio.run(ask())
    assert [response.status_code for response in responses] == [200] * 4
    texts = [response.json()["choices"][0]["text"] for response in responses]
    assert texts[0] == texts[2]
    assert responses[3].json()["usage"]["completion_tokens"] <= 1


def test_edits_and_reverts_count_from_the_next_prompt_on(make_editor):
    editor = make_editor("closed-form")
    records = demo_edits()[:2]
    edit_all(editor, records[:1])
    with running(front_of(editor).app()) as url:

        def edits() -> list[int | None]:
            bodies = [chat(record.prompt) for record in records]
            return [response.json()["scen"]["edit"] for response in asyncio.run(ask_all(url, bodies))]

        assert edits() == [1, None]
        edit_all(editor, records[1:])
        assert edits() == [1, 2]
        take_back(editor.project, 1)
        assert edits() == [None, 2]

"""A project that is moved, removed or replaced under a running server is not served any more."""

from __future__ import annotations

import shutil

import httpx
import pytest

from scen_cli.data.suites import demo_edits
from scen_cli.serving.app import ServerOptions
from scen_cli.serving.server import local_app
from tests.conftest import edit_all, revert
from tests.serving.running import chat, running

RECORD = demo_edits()[0]


@pytest.fixture
def editor(make_editor):
    editor = make_editor("key")
    edit_all(editor, [RECORD])
    return editor


def ask(url) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=chat(RECORD.prompt), timeout=30)


def check_is_unhealthy(url) -> None:
    health, refused = httpx.get(f"{url}/health"), ask(url)
    assert health.status_code == refused.status_code == 503
    assert "moved, removed or replaced" in health.json()["reason"]
    assert refused.json()["error"]["message"] == health.json()["reason"]


def test_a_replaced_or_removed_project_is_unhealthy_until_it_is_back(editor, tmp_path, scen):
    folder, aside = editor.project.folder, tmp_path / "aside"
    scen("backup", tmp_path / "b.zip", "--dir", folder)
    with running(local_app(editor, ServerOptions()).asgi()) as url:
        assert ask(url).json()["scen"]["edit"] == 1
        folder.rename(aside)
        check_is_unhealthy(url)
        scen("restore", tmp_path / "b.zip", "--dir", folder)
        check_is_unhealthy(url)
        shutil.rmtree(folder)
        aside.rename(folder)
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        revert(editor.project, 1)
        assert ask(url).json()["scen"]["edit"] is None
        shutil.rmtree(folder)
        check_is_unhealthy(url)


@pytest.mark.parametrize("stream", [False, True])
def test_a_project_replaced_under_a_request_does_not_answer_it_or_later_ones(editor, tmp_path, stream):
    app, folder, aside = local_app(editor, ServerOptions()), editor.project.folder, tmp_path / "aside"
    run_batch = app.queue._run_batch

    def replace_first(requests):
        folder.rename(aside)
        shutil.copytree(aside, folder)
        app.queue._run_batch = run_batch
        run_batch(requests)

    app.queue._run_batch = replace_first
    with running(app.asgi()) as url:
        body = chat(RECORD.prompt, stream=stream)
        assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30).status_code == 503
        check_is_unhealthy(url)
        shutil.rmtree(folder)
        aside.rename(folder)
        assert ask(url).json()["scen"]["edit"] == 1
        revert(editor.project, 1)
        assert ask(url).json()["scen"]["edit"] is None

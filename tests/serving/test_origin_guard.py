"""Requests that pages of other web sites send through a browser are refused."""

from __future__ import annotations

import httpx
import pytest

from scen_cli.serving.app import ServerOptions
from scen_cli.serving.origin_guard import LOCAL_HOSTS, hosts_of
from scen_cli.serving.server import local_app
from tests.serving.running import chat, running

SITE = "https://site.example"


@pytest.fixture(scope="module")
def url(low_rank):
    with running(local_app(low_rank, ServerOptions()).asgi()) as address:
        yield address


@pytest.fixture(scope="module")
def open_url(low_rank):
    """A server that answers to any host, and to the pages of one web site."""
    with running(local_app(low_rank, ServerOptions(hosts=("*",), origins=(SITE,))).asgi()) as address:
        yield address


def post(url, **headers) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=chat("x"), headers=headers, timeout=30)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "[::1]"])
def test_local_names_are_answered(url, host):
    assert httpx.get(f"{url}/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["site.example", "localhost.site.example:8000", "[::2]", "[", "", "127.0.0.1.site"])
def test_another_host_is_refused(url, host):
    for response in (httpx.get(f"{url}/health", headers={"host": host}), post(url, host=host)):
        assert response.status_code == 400
        assert "--allowed-host" in response.json()["error"]["message"]


@pytest.mark.parametrize("origin", [SITE, "null", "http://127.0.0.1:1", "http://127.0.0.1", ""])
def test_a_post_by_a_page_of_another_origin_is_refused(url, origin):
    response = post(url, origin=origin)
    assert response.status_code == 403
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert "--allow-origin" in response.json()["error"]["message"]


def test_a_page_of_the_server_itself_and_of_an_allowed_origin_may_post(url, open_url):
    assert post(url, origin=url).status_code == 200
    allowed = post(open_url, origin=SITE, host="any.example")
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == SITE
    assert allowed.headers["access-control-expose-headers"] == "x-scen-edit"
    assert post(open_url, origin="https://other.example").status_code == 403


def test_a_browser_learns_before_a_request_whether_it_may_ask(url, open_url):
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}

    def preflight(url, origin) -> httpx.Response:
        return httpx.options(f"{url}/v1/chat/completions", headers={"origin": origin, **asks})

    allowed = preflight(open_url, SITE)
    assert allowed.status_code == 200
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    for refused in (preflight(open_url, "https://other.example"), preflight(url, SITE)):
        assert refused.status_code >= 400
        assert "access-control-allow-origin" not in refused.headers


def test_a_server_answers_to_its_address_and_at_all_addresses_to_any_name():
    assert hosts_of("10.0.0.7", ()) == (*LOCAL_HOSTS, "10.0.0.7")
    assert hosts_of("fd00::7", ["scen.example"]) == (*LOCAL_HOSTS, "[fd00::7]", "scen.example")
    assert hosts_of("0.0.0.0", ()) == hosts_of("::", ()) == ("*",)
    assert "*" not in hosts_of("0.0.0.0", ["scen.example"])

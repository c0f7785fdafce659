"""`scen serve` as a process."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import httpx

from scen_cli.data.suites import demo_edits
from scen_cli.serving.log_limit import LINES
from tests.serving.running import chat


def send_garbage(address: str, times: int) -> None:
    """What is no HTTP: the server logs it."""
    for _ in range(times):
        with socket.create_connection((urlsplit(address).hostname, urlsplit(address).port)) as connection:
            connection.sendall(b"\0\r\n\r\n")
            connection.recv(1000)


def test_sigterm_loses_no_accepted_request_and_the_log_stays_short(low_rank):
    command = [sys.executable, "-m", "scen_cli", "serve", "--port", "0", "--batch", "1"]
    command += ["--dir", str(low_rank.project.folder), "--allowed-host", "scen.example", "--allow-origin", "http://a"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output = ""
        while not (address := re.search(r"at (http://[\d.]+:\d+)/v1", output)):
            line = server.stdout.readline()
            assert line, server.stderr.read()
            output += line
        send_garbage(address[1], 50)
        for host, status in (("scen.example", 200), ("127.0.0.1", 200), ("other.example", 400)):
            health = httpx.get(f"{address[1]}/health", headers={"host": host, "origin": "http://a"})
            assert health.status_code == status
            assert health.headers.get("access-control-allow-origin") == ("http://a" if status == 200 else None)
        records = demo_edits()[:20]

        async def ask_and_stop() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=address[1], timeout=60) as client:
                bodies = [chat(record.prompt) for record in records]
                requests = [asyncio.ensure_future(client.post("/v1/chat/completions", json=body)) for body in bodies]
                await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
                server.send_signal(signal.SIGTERM)
                return await asyncio.gather(*requests)

        responses = asyncio.run(ask_and_stop())
        assert {response.status_code for response in responses} == {200}
        answers = [response.json()["choices"][0]["message"]["content"].strip() for response in responses]
        assert answers == [record.target for record in records]
        assert server.wait(timeout=30) == 0
        log = server.stderr.read()
        assert "Traceback" not in log
        assert log.count("Invalid HTTP request") == LINES
        assert "further lines like this are left out" in log
    finally:
        server.kill()


def test_wrong_options_fail_before_the_server_starts(scen, low_rank):
    folder = str(low_rank.project.folder)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert "cannot listen on" in scen("serve", "--dir", folder, "--port", port, code=2).stderr
    assert "go together" in scen("serve", "--dir", folder, "--vllm", "http://localhost:1", code=2).stderr


def test_the_api_key_comes_from_a_file_or_the_environment(scen, low_rank, tmp_path, monkeypatch):
    at, file = ("--dir", str(low_rank.project.folder), "--port", "0"), tmp_path / "key"
    served = []
    monkeypatch.setattr("scen_cli.serving.server.run", lambda app, _listener: served.append(app.options.api_key))
    file.write_text("schlüssel\n", encoding="utf-8")
    assert "ps" not in scen("serve", *at, "--api-key-file", file).stderr
    assert "see the key of `--api-key` in `ps`" in scen("serve", *at, "--api-key", "shown").stderr
    monkeypatch.setenv("SCEN_API_KEY", "variable")
    assert "ps" not in scen("serve", *at).stderr
    assert served == ["schlüssel", "shown", "variable"]
    assert "two API keys" in scen("serve", *at, "--api-key-file", file, code=2).stderr
    monkeypatch.delenv("SCEN_API_KEY")
    assert "is empty" in scen("serve", *at, "--api-key", "", code=2).stderr
    file.write_bytes(b"\n")
    assert "is empty" in scen("serve", *at, "--api-key-file", file, code=2).stderr
    for content in (b"\xff", None):
        file.unlink() if content is None else file.write_bytes(content)
        assert "cannot read an API key" in scen("serve", *at, "--api-key-file", file, code=2).stderr

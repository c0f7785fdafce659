"""`scen cache`."""

from __future__ import annotations

import json

from scen_cli.data.user_cache import cached_texts


def test_the_cache_is_listed_and_cleared(scen, tmp_path, monkeypatch):
    monkeypatch.setenv("SCEN_CACHE", str(tmp_path / "cache"))
    assert "0 entries" in scen("cache").stdout
    assert cached_texts("sampled-prompts", ["inputs"], lambda: ["a", "b"]) == ["a", "b"]
    (tmp_path / "cache" / "gguf" / "base").mkdir(parents=True)
    (tmp_path / "cache" / "gguf" / "base" / "model.safetensors").write_bytes(bytes(2_000_000))
    listed = json.loads(scen("cache", "--json").stdout)
    assert next((entry["kind"], entry["name"]) for entry in listed["entries"]) == ("gguf", "base")
    assert listed["bytes"] > 2_000_000
    assert "2 entries" in scen("cache", "--clear").stdout
    assert json.loads(scen("cache", "--json").stdout)["entries"] == []


def test_clearing_keeps_what_is_not_scens(scen, tmp_path, monkeypatch):
    monkeypatch.setenv("SCEN_CACHE", str(tmp_path))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"mine")
    (tmp_path / "gguf" / "base").mkdir(parents=True)
    assert "1 entries" in scen("cache", "--clear").stdout
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"mine"
    assert not (tmp_path / "gguf" / "base").exists()


def test_a_cached_list_is_not_computed_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SCEN_CACHE", str(tmp_path))
    calls = []
    for _ in range(2):
        assert cached_texts("texts", [1], lambda: calls.append(1) or ["a"]) == ["a"]
    [file] = (tmp_path / "texts").iterdir()
    file.write_text("damaged")
    assert cached_texts("texts", [1], lambda: calls.append(1) or ["a"]) == ["a"]
    assert len(calls) == 2

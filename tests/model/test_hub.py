"""Bases from a hub: the real `huggingface_hub` in a separate process, and a stub hub on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from scen_cli.model.known_bases import DEMO
from scen_cli.project.project import Project
from tests.model.stub_hub import COMMIT, hub_of

REPO = "somebody/demo-llama"
UNWANTED = ["pytorch_model.bin", "consolidated.safetensors", "code.py"]
MAKE = """
import sys
from pathlib import Path
from scen_cli import Editor, new_project
from scen_cli.data.suites import demo_edits
from scen_cli.errors import ScenError
from scen_cli.export.transformers_folder import export_checkpoint
from scen_cli.model.base import load_base
folder, to, repo = sys.argv[1:]
changes = {"expert": "low-rank"}
editor = Editor(new_project(folder, repo, 2, recipe="key", changes=changes, device="cpu"), device="cpu")
with editor.project.writing():
    editor.edit(demo_edits()[0])
    editor.project.merge()
export_checkpoint(editor, Path(to), patch_only=True)
try:
    load_base("nobody/nothing")
except ScenError as error:
    print(error)
"""
LOAD = """
import sys
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
print(model.config.scen["base"]["name"], len(model.config.scen["edits"]))
"""


@pytest.fixture
def hub(tmp_path):
    """Runs a script with the stub hub as the only hub; `hub.sent`: the files that it has sent."""
    shutil.copytree(DEMO, tmp_path / "repo")
    for name in UNWANTED:
        (tmp_path / "repo" / name).write_bytes(b"must not be downloaded")
    sent: list[str] = []
    with hub_of(REPO, tmp_path / "repo", sent) as address:
        hub_env = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}

        def run(script: str, *arguments: object) -> str:
            done = subprocess.run(
                [sys.executable, "-c", script, *map(str, arguments)],
                env={**os.environ, **hub_env, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        run.sent = sent  # type: ignore[attr-defined]
        yield run


@pytest.mark.slow
def test_a_base_is_downloaded_edited_and_downloaded_again_by_a_patch(hub, tmp_path):
    output = hub(MAKE, tmp_path / "p", tmp_path / "patch", REPO)
    assert output.startswith("cannot download `nobody/nothing` from the hub")
    settings = Project(tmp_path / "p").settings
    assert (settings["model"], settings["revision"]) == (REPO, COMMIT)
    assert set(hub.sent) == {file.name for file in DEMO.iterdir()} - {"facts.jsonl"}
    assert len(set(hub.sent)) == len(hub.sent)  # loaded twice, downloaded once
    shutil.rmtree(tmp_path / "home")
    hub.sent.clear()
    assert hub(LOAD, tmp_path / "patch").split() == [REPO, "1"]
    assert "model.safetensors" in hub.sent

"""Reports: complete in one file, equal to the ledger, safe against HTML in prompts."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from scen_cli.data.suites import Suite, demo_edits, load_suite
from scen_cli.demo.world import right_facts
from scen_cli.evaluation.evaluate_project import evaluate
from scen_cli.evaluation.evaluation import record_evaluation
from scen_cli.report import pictures
from scen_cli.report.gather import gather
from scen_cli.report.markdown import as_markdown
from scen_cli.report.page import as_page
from tests.conftest import edit_all, revert


@pytest.fixture(scope="module")
def reported(tmp_path_factory, demo_base):
    """An evaluated project with twelve edits; one prompt contains HTML."""
    from scen_cli.editing.create_project import new_project
    from scen_cli.editing.editor import Editor

    project = new_project(tmp_path_factory.mktemp("reported") / "p", "demo", recipe="paper", base=demo_base)
    editor = Editor(project, base=demo_base)
    hostile = demo_edits()[0].model_copy(update={"prompt": "Who is <script>alert(1)</script> & | `x`?"})
    edit_all(editor, [hostile, *demo_edits()[1:12]])
    evaluation = evaluate(editor, Suite("mine", [hostile, *demo_edits()[1:12]], load_suite("demo").locality[:50]))
    record_evaluation(project, evaluation)
    editor.detach()
    return project, evaluation


class Page(HTMLParser):
    """Collects tags with their attributes, and checks that tags are closed."""

    VOID = frozenset({"meta", "br", "link", "img", "path", "use"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_has_no_scripts_and_no_external_resources(reported):
    page = as_page(gather(reported[0]))
    parsed = Page(page)
    assert parsed.open == []
    tags = [tag for tag, _ in parsed.tags]
    assert "script" not in tags
    assert "link" not in tags
    for _tag, attributes in parsed.tags:
        for name in ("src", "href", "xlink:href", "action"):
            target = attributes.get(name, "#")
            assert target.startswith(("#", "data:image/png;base64,")), target
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"@import|url\((?!#)", page)
    assert tags.count("svg") == 3
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in parsed.tags


def test_the_page_has_the_measured_figures(reported):
    project, evaluation = reported
    page = as_page(gather(project))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    for name in ("reliability", "generality", "locality", "robustness/typo", "near-miss/same-relation"):
        measure = evaluation.figures[name].patched
        assert f"{100 * measure.share:.1f} %" in page
        assert f'<td class="soft">{measure.right}/{measure.total}</td>' in page
    assert "theta 0.65" in page
    assert project.settings["weights_digest"] in page
    assert "bytes per edit" in page
    assert str(evaluation.curves["confusions"][0]["prompts"]) in page
    assert page.count('class="state active"') == 12
    assert "The edits changed after this evaluation" not in page


def test_outdated_figures_are_marked(make_editor):
    editor = make_editor()
    assert "Not evaluated yet" in as_page(gather(editor.project))
    edit_all(editor, demo_edits()[:2])
    suite = Suite("mine", demo_edits()[:2], [right_facts()[0].phrasings[0]])
    record_evaluation(editor.project, evaluate(editor, suite))
    revert(editor.project, 1)
    for text in (as_page(gather(editor.project)), as_markdown(gather(editor.project))):
        assert "The edits changed after this evaluation" in text
    assert 'class="state reverted"' in as_page(gather(editor.project))


def test_user_text_cannot_break_markdown_tables(reported):
    project, evaluation = reported
    text = as_markdown(gather(project))
    share = evaluation.figures["reliability"].patched
    assert f"| Reliability | {100 * share.share:.1f} % | {share.right}/{share.total} |" in text
    assert "| 1 | active | Who is &lt;script>alert(1)&lt;/script> & \\| \\`x\\`? |" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in tables}) <= 4


def test_the_report_command(scen, reported, tmp_path):
    folder = reported[0].folder
    scen("report", "--dir", folder, "--out", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == as_page(gather(reported[0]))
    assert "# Edits of demo" in scen("report", "--dir", folder, "--markdown").stdout
    result = json.loads(scen("report", "--dir", folder, "--json").stdout)
    assert result["bytes"] == (folder / "report.html").stat().st_size
    assert scen("verify", "--dir", folder).exit_code == 0  # verify accepts the report file


def test_without_matplotlib_the_page_has_no_pictures_and_the_command_warns(scen, reported, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "find_spec", lambda _name: None)
    page = tmp_path / "page.html"
    assert "they need matplotlib" in scen("report", "--dir", reported[0].folder, "--out", page).stderr
    assert "<svg" not in page.read_text()
    assert "Reliability" in page.read_text()
    study = scen("study", "fig4", "--edits", "2", "--dir", reported[0].folder, code=2)
    assert "pip install matplotlib" in study.stderr

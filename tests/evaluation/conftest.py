"""One evaluation for the tests that only read its figures."""

from __future__ import annotations

import pytest

from scen_cli.data.suites import load_suite
from scen_cli.evaluation.evaluate_project import evaluate


@pytest.fixture(scope="session")
def demo_evaluation(edited):
    """The evaluation of 40 edits on the demo suite."""
    return evaluate(edited, load_suite("demo"))

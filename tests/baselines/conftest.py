"""The context of all methods in tests: the demo base, prompts that it wrote, and development edits."""

import pytest

PROMPTS = 400


@pytest.fixture(scope="session")
def context(demo_base):
    from scen_cli.baselines.context import MethodContext
    from scen_cli.data.suites import demo_edits
    from scen_cli.model.generation import sample_prompts
    from scen_cli.model.known_bases import DEFAULT_TEMPLATE
    from scen_cli.model.template import make_template

    template = make_template(demo_base.tokenizer, demo_base.model, DEFAULT_TEMPLATE)
    prompts = sample_prompts(demo_base, template, PROMPTS, seed=0)
    return MethodContext(demo_base, template, 2, prompts, demo_edits()[600:640])


@pytest.fixture(scope="session")
def edits():
    from scen_cli.data.suites import demo_edits

    return demo_edits()

"""Experts trained in other processes: the same files bit for bit, whatever dies meanwhile."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from scen_cli.data.records import EditRecord
from scen_cli.data.suites import demo_edits
from scen_cli.editing.create_project import new_project
from scen_cli.errors import ScenError, UsageError
from scen_cli.experts.fit import ExpertFit
from scen_cli.experts.fit_records import FittedExpert
from scen_cli.experts.process_pool import WorkerPool, _fit, device_of
from scen_cli.experts.scheduling import TRIES
from scen_cli.experts.serialize import packed, unpacked
from scen_cli.model.expert_stack import LowRank

FAST = {"expert_steps": 8, "extra_steps": 0, "require_learned": False}


def batches(count: int, size: int = 1) -> list[list[list[EditRecord]]]:
    groups = [[record] for record in demo_edits()[: count * size]]
    return [groups[start : start + size] for start in range(0, len(groups), size)]


def digests(folder):
    return {path.name for path in (folder / "edits").iterdir()}  # their names hold their sha256


@pytest.fixture
def project(tmp_path, demo_base):
    return new_project(tmp_path / "p", "demo", recipe="key", changes={"expert": "low-rank", **FAST}, base=demo_base)


def same(one: list[FittedExpert], other: list[FittedExpert]) -> bool:
    pairs = [(a.fit, b.fit) for a, b in zip(one, other, strict=True)]
    return all(
        torch.equal(a.expert.a, b.expert.a)
        and torch.equal(a.expert.b, b.expert.b)
        and (a.losses, a.wrong_tokens, a.logit_margin) == (b.losses, b.wrong_tokens, b.logit_margin)
        for a, b in pairs
    )


def test_files_are_the_same_whatever_the_number_of_workers(scen, project, tmp_path, demo_base):
    new_project(tmp_path / "q", "demo", recipe="key", changes={"expert": "low-rank", **FAST}, base=demo_base)
    alone = scen("edit", "--suite", "demo", "--first", 6, "--dir", tmp_path / "p").stdout
    together = scen("edit", "--suite", "demo", "--first", 6, "--dir", tmp_path / "q", "--workers", 2).stdout
    assert alone == together
    assert len(digests(tmp_path / "p")) == 6
    assert digests(tmp_path / "p") == digests(tmp_path / "q")
    assert (tmp_path / "p" / "merged.safetensors").read_bytes() == (tmp_path / "q" / "merged.safetensors").read_bytes()


def test_a_worker_that_is_killed_costs_time_alone(project, demo_base):
    from scen_cli.editing.editor import Editor

    editor = Editor(project, base=demo_base)
    asked = batches(8)
    with WorkerPool(project.settings, 2, "cpu") as pool:
        fits, killed = [], set()
        for number, fitted in enumerate(pool(asked)):
            fits.append(fitted)
            if number in (0, 3):
                (process,) = pool._pools[number % 2]._processes.values()
                os.kill(process.pid, signal.SIGKILL)
                killed.add(process.pid)
    assert len(killed) == 2
    assert all(same(one, editor.fit(batch)) for one, batch in zip(fits, asked, strict=True))


def test_edits_that_kill_every_worker_are_told(project):
    with WorkerPool(project.settings, 1, "cpu") as pool:
        restarts = []
        start = pool._start

        def start_and_fail(number):
            restarts.append(number)
            made = start(number)
            made.submit(os._exit, 1)
            return made

        pool._pools = [start_and_fail(0)]
        pool._start = start_and_fail
        with pytest.raises(ScenError, match=f"died {TRIES} times over the same edits"):
            list(pool(batches(2)))
    assert len(restarts) == TRIES


def test_ray_gives_the_same_and_restarts_what_dies(project, demo_base):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from scen_cli.editing.editor import Editor
    from scen_cli.experts.ray_pool import RayPool

    editor = Editor(project, base=demo_base)
    asked = batches(6)
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        with RayPool(project.settings, 2, "cpu") as pool:
            fits, before = [], list(pool.actors)
            for number, fitted in enumerate(pool(asked)):
                fits.append(fitted)
                if number == 0:
                    ray.kill(pool.actors[1])
            assert [now is then for now, then in zip(pool.actors, before, strict=True)] == [True, False]
        assert all(same(one, editor.fit(batch)) for one, batch in zip(fits, asked, strict=True))
        changed = {**project.settings, "weights_digest": "0" * 64, "files_stamp": []}
        with RayPool(project.settings, int(ray.cluster_resources()["CPU"]) + 2, "cpu") as pool:  # more than fit
            assert same(next(iter(pool(asked[:1]))), fits[0])
        with RayPool(changed, 1, "cpu") as pool, pytest.raises(UsageError, match=r"^the base's weights in .* changed"):
            list(pool(batches(1)))
    finally:
        ray.shutdown()


def test_experts_come_out_of_a_pack_as_they_went_in():
    low = ExpertFit(LowRank(torch.randn(4, 6), torch.randn(3, 4)), [1.5, 0.25], [[0], []], -0.125)
    full = ExpertFit(torch.randn(3, 6), [0.1], [[]], 2.0)
    diverged = ExpertFit(torch.full((3, 6), torch.nan), [float("nan")], [[1]], float("-inf"))
    out = unpacked(packed([FittedExpert(low, 0.5), FittedExpert(full, 0.25), FittedExpert(diverged, 1.0)]))
    assert [one.seconds for one in out] == [0.5, 0.25, 1.0]
    assert torch.equal(out[0].fit.expert.a, low.expert.a)
    assert torch.equal(out[0].fit.expert.b, low.expert.b)
    assert torch.equal(out[1].fit.expert, full.expert)
    assert (out[0].fit.losses, out[0].fit.wrong_tokens, out[0].fit.logit_margin) == ([1.5, 0.25], [[0], []], -0.125)
    assert not out[2].fit.finite
    assert out[2].fit.logit_margin == float("-inf")


def test_gpus_are_taken_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [device_of(number, "auto") for number in range(4)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
    assert device_of(1, "cpu") == "cpu"
    assert device_of(1, "cuda:2") == "cuda:2"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of(1, "auto") == "auto"


def test_engines_and_methods_that_do_not_go_together(scen, project, tmp_path):
    assert "not known" in scen("edit", "--suite", "demo", "--engine", "dask", "--dir", tmp_path / "p", code=2).stderr


def test_a_worker_that_dies_with_nothing_to_do_is_replaced(project, demo_base):
    from scen_cli.editing.editor import Editor

    editor = Editor(project, base=demo_base)
    asked = batches(3)
    with WorkerPool(project.settings, 1, "cpu") as pool:
        run = pool(asked)
        fits = [next(run), next(run)]  # one batch is ahead, and then there is nothing more to do
        (future,) = [pool._pools[0].submit(int)]
        future.result()
        (process,) = pool._pools[0]._processes.values()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        fits += run
        again = list(pool(asked[:1]))
    assert all(same(one, editor.fit(batch)) for one, batch in zip([*fits, *again], [*asked, asked[0]], strict=True))


def test_what_a_worker_cannot_begin_with_is_told_as_it_is(project):
    settings = {**project.settings, "weights_digest": "0" * 64, "files_stamp": []}
    with WorkerPool(settings, 1, "cpu") as pool, pytest.raises(UsageError, match="have changed"):
        list(pool(batches(1)))


def test_what_workers_are_at_is_dropped_when_the_run_ends(project):
    slow = {**project.settings, "recipe": {**project.settings["recipe"], "expert_steps": 100_000}}
    with WorkerPool(slow, 1, "cpu") as pool:
        pool._pools[0].submit(int).result()
        (process,) = pool._pools[0]._processes.values()
        pool._pools[0].submit(_fit, batches(1)[0])
    end = time.monotonic() + 60
    while process.exitcode is None and time.monotonic() < end:  # (`join` may come back without it: the pool joins too)
        time.sleep(0.05)
    assert process.exitcode == -signal.SIGKILL

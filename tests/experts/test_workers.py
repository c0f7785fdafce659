"""Experts trained in other processes: the same files bit for bit, even if workers die."""

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
from scen_cli.experts.fit_records import FittedExpert, experts_from_bytes, experts_to_bytes
from scen_cli.experts.process_pool import MAX_DEATHS, WorkerPool, _fit, device_of_worker
from scen_cli.model.expert_stack import LowRank

FAST = {"expert_steps": 8, "extra_steps": 0, "require_learned": False}


def batches(count: int, size: int = 1) -> list[list[list[EditRecord]]]:
    groups = [[record] for record in demo_edits()[: count * size]]
    return [groups[start : start + size] for start in range(0, len(groups), size)]


def digests(folder):
    return {path.name for path in (folder / "edits").iterdir()}  # file names contain the SHA-256


@pytest.fixture
def project(tmp_path, demo_base):
    return new_project(tmp_path / "p", "demo", recipe="key", changes={"expert": "low-rank", **FAST}, base=demo_base)


def same(first: list[FittedExpert], second: list[FittedExpert]) -> bool:
    pairs = [(a.fit, b.fit) for a, b in zip(first, second, strict=True)]
    return all(
        torch.equal(a.expert.a, b.expert.a)
        and torch.equal(a.expert.b, b.expert.b)
        and (a.losses, a.wrong_tokens, a.logit_margin) == (b.losses, b.wrong_tokens, b.logit_margin)
        for a, b in pairs
    )


@pytest.mark.slow
def test_files_do_not_depend_on_the_number_of_workers(scen, project, tmp_path, demo_base):
    new_project(tmp_path / "q", "demo", recipe="key", changes={"expert": "low-rank", **FAST}, base=demo_base)
    alone = scen("edit", "--suite", "demo", "--first", 6, "--dir", tmp_path / "p").stdout
    together = scen("edit", "--suite", "demo", "--first", 6, "--dir", tmp_path / "q", "--workers", 2).stdout
    assert alone == together
    assert len(digests(tmp_path / "p")) == 6
    assert digests(tmp_path / "p") == digests(tmp_path / "q")
    assert (tmp_path / "p" / "merged.safetensors").read_bytes() == (tmp_path / "q" / "merged.safetensors").read_bytes()


@pytest.mark.slow
def test_a_killed_worker_does_not_change_the_results(project, demo_base):
    from scen_cli.editing.editor import Editor

    editor = Editor(project, base=demo_base)
    wanted = batches(8)
    with WorkerPool(project.settings, 2, "cpu") as pool:
        fits, killed = [], set()
        for number, fitted in enumerate(pool(wanted)):
            fits.append(fitted)
            if number in (0, 3):
                (process,) = pool._pools[number % 2]._processes.values()
                os.kill(process.pid, signal.SIGKILL)
                killed.add(process.pid)
    assert len(killed) == 2
    assert all(same(fitted, editor.fit(batch)) for fitted, batch in zip(fits, wanted, strict=True))


@pytest.mark.slow
def test_edits_that_kill_every_worker_are_an_error(project):
    with WorkerPool(project.settings, 1, "cpu") as pool:
        restarts = []
        start = pool._start

        def start_and_fail(number):
            restarts.append(number)
            started = start(number)
            started.submit(os._exit, 1)
            return started

        pool._pools = [start_and_fail(0)]
        pool._start = start_and_fail
        with pytest.raises(ScenError, match=f"died {MAX_DEATHS} times on the same edits"):
            list(pool(batches(2)))
    assert len(restarts) == MAX_DEATHS


@pytest.mark.slow
def test_ray_gives_the_same_results_and_replaces_dead_actors(project, demo_base):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from scen_cli.editing.editor import Editor
    from scen_cli.experts.ray_pool import RayPool

    editor = Editor(project, base=demo_base)
    wanted = batches(6)
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        with RayPool(project.settings, 2, "cpu") as pool:
            fits, before = [], list(pool.actors)
            for number, fitted in enumerate(pool(wanted)):
                fits.append(fitted)
                if number == 0:
                    ray.kill(pool.actors[1])
            assert [actor is old for actor, old in zip(pool.actors, before, strict=True)] == [True, False]
        assert all(same(fitted, editor.fit(batch)) for fitted, batch in zip(fits, wanted, strict=True))
        changed = {**project.settings, "weights_digest": "0" * 64, "files_stamp": []}
        with RayPool(project.settings, int(ray.cluster_resources()["CPU"]) + 2, "cpu") as pool:  # more actors than CPUs
            assert same(next(iter(pool(wanted[:1]))), fits[0])
        with RayPool(changed, 1, "cpu") as pool, pytest.raises(UsageError, match=r"^the base's weights in .* changed"):
            list(pool(batches(1)))
    finally:
        ray.shutdown()


def test_serialised_experts_are_restored_bit_for_bit():
    low = ExpertFit(LowRank(torch.randn(4, 6), torch.randn(3, 4)), [1.5, 0.25], [[0], []], -0.125)
    full = ExpertFit(torch.randn(3, 6), [0.1], [[]], 2.0)
    diverged = ExpertFit(torch.full((3, 6), torch.nan), [float("nan")], [[1]], float("-inf"))
    out = experts_from_bytes(
        experts_to_bytes([FittedExpert(low, 0.5), FittedExpert(full, 0.25), FittedExpert(diverged, 1.0)])
    )
    assert [fitted.seconds for fitted in out] == [0.5, 0.25, 1.0]
    assert torch.equal(out[0].fit.expert.a, low.expert.a)
    assert torch.equal(out[0].fit.expert.b, low.expert.b)
    assert torch.equal(out[1].fit.expert, full.expert)
    assert (out[0].fit.losses, out[0].fit.wrong_tokens, out[0].fit.logit_margin) == ([1.5, 0.25], [[0], []], -0.125)
    assert not out[2].fit.finite
    assert out[2].fit.logit_margin == float("-inf")


def test_workers_use_gpus_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [device_of_worker(number, "auto") for number in range(4)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
    assert device_of_worker(1, "cpu") == "cpu"
    assert device_of_worker(1, "cuda:2") == "cuda:2"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of_worker(1, "auto") == "auto"


def test_an_unknown_engine_is_rejected(scen, project, tmp_path):
    assert "not known" in scen("edit", "--suite", "demo", "--engine", "dask", "--dir", tmp_path / "p", code=2).stderr


@pytest.mark.slow
def test_a_worker_that_dies_while_idle_is_replaced(project, demo_base):
    from scen_cli.editing.editor import Editor

    editor = Editor(project, base=demo_base)
    wanted = batches(3)
    with WorkerPool(project.settings, 1, "cpu") as pool:
        run = pool(wanted)
        fits = [next(run), next(run)]  # the third batch is trained ahead, then the worker is idle
        (future,) = [pool._pools[0].submit(int)]
        future.result()
        (process,) = pool._pools[0]._processes.values()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        fits += run
        again = list(pool(wanted[:1]))
    assert all(
        same(fitted, editor.fit(batch)) for fitted, batch in zip([*fits, *again], [*wanted, wanted[0]], strict=True)
    )


@pytest.mark.slow
def test_an_error_while_a_worker_loads_its_base_is_raised_unchanged(project):
    settings = {**project.settings, "weights_digest": "0" * 64, "files_stamp": []}
    with WorkerPool(settings, 1, "cpu") as pool, pytest.raises(UsageError, match="have changed"):
        list(pool(batches(1)))


@pytest.mark.slow
def test_running_batches_are_dropped_when_the_pool_closes(project):
    slow = {**project.settings, "recipe": {**project.settings["recipe"], "expert_steps": 100_000}}
    with WorkerPool(slow, 1, "cpu") as pool:
        pool._pools[0].submit(int).result()
        (process,) = pool._pools[0]._processes.values()
        pool._pools[0].submit(_fit, batches(1)[0])
    end = time.monotonic() + 60
    while process.exitcode is None and time.monotonic() < end:  # `join` may return without it: the pool joins too
        time.sleep(0.05)
    assert process.exitcode == -signal.SIGKILL

"""Batches that run on workers: the same images, deaths, cancelling, several at a time."""

from __future__ import annotations

import io
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdexport import Pipeline
from sdexport.engines.errors import InvalidArgumentError, OutOfMemoryError, PackageError
from sdexport.runtime.denoise import DenoiseStep
from sdexport.runtime.images.metadata import save_image
from sdexport.server import job_runner, worker_engines
from sdexport.server.image_request import ImageRequest
from sdexport.server.image_service import ImageService
from sdexport.server.jobs import Job, JobEvent
from sdexport.server.model_store import ModelStore
from sdexport.server.server_errors import DeadlineError, ModelFailedError, ShuttingDownError
from sdexport.server.worker_messages import Message, SentJob, WorkerReady
from tests.helpers.live_server import PATIENCE, wait_until
from tests.helpers.local_workers import ScriptedCall, Worker, Workers, at_step, remote_service

SMALL = {"num_inference_steps": 3, "width": 64, "height": 64, "seed": 5}


@pytest.fixture(scope="module")
def store(demo_package: Path) -> Iterator[ModelStore]:
    """The open model of all workers, which share this process."""
    models = ModelStore({"demo": demo_package}, max_batch=4)
    models.open(models.models[0])
    yield models
    models.close()


def worker_of(store: ModelStore, name: str) -> Worker:
    made = Worker(name, store)
    made.worker.close = lambda: None  # type: ignore[method-assign]  # the store is shared
    return made


def submit(service: ImageService, prompt: str = "a red circle", **further: Any) -> Job:
    previews = further.pop("previews", False)
    arguments = {"prompt": prompt, **SMALL, **further}
    return service.submit(ImageRequest("demo", arguments), previews=previews)


def wait_for(*jobs: Job) -> None:
    wait_until(lambda: all(job.is_over for job in jobs))


def file_of(image: Image.Image) -> bytes:
    content = io.BytesIO()
    save_image(image, content)
    return content.getvalue()


def test_a_file_from_a_worker_is_that_of_the_library(
    store: ModelStore, demo_package: Path, demo_pipe: Pipeline
) -> None:
    image = Image.fromarray(np.full((64, 64, 3), 90, np.uint8))
    calls: list[dict[str, Any]] = [
        {},
        {"negative_prompt": "blue", "scheduler": "euler_a"},
        {"image": image, "strength": 0.7, "width": None, "height": None},
    ]
    with remote_service(demo_package) as (service, workers):
        workers.workers.append(worker_of(store, "first"))
        for further in calls:
            events: list[JobEvent] = []
            job = submit(service, previews=True, **further)
            job.listen(events.append)
            wait_for(job)
            assert job.status == "done", job.error
            own = {k: v for k, v in {**SMALL, **further}.items() if v is not None}
            expected = demo_pipe("a red circle", **own)
            assert file_of(job.images[0]) == file_of(expected.images[0])
            assert any(event.preview is not None for event in events) and job.seconds
            assert service.models.models[0].is_open


def test_a_worker_that_dies_loses_no_job(
    store: ModelStore, demo_package: Path, demo_pipe: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    with remote_service(demo_package, 1, max_batch=2) as (service, workers):
        first = worker_of(store, "first")
        first.dies_at = at_step(2)
        jobs = [submit(service), submit(service, seed=6)]
        workers.workers.append(first)
        wait_until(lambda: not workers.workers)
        assert [job.status for job in jobs] == ["running"] * 2
        workers.workers.append(worker_of(store, "second"))
        wait_for(*jobs)
        for job, seed in zip(jobs, (5, 6), strict=True):
            assert job.status == "done"
            expected = demo_pipe("a red circle", **{**SMALL, "seed": seed})
            assert job.images[0].tobytes() == expected.images[0].tobytes()
    assert "first" in caplog.text and "first died" in caplog.text


def test_a_job_that_workers_die_of_fails_and_takes_no_other_with_it(
    store: ModelStore, demo_package: Path
) -> None:
    with remote_service(demo_package, 1, max_batch=2) as (service, workers):
        jobs = [submit(service, "a poison"), submit(service)]
        for number in range(worker_engines.MOST_DEATHS):
            dying = worker_of(store, f"worker {number}")
            dying.dies_at = at_step(1, "poison")
            workers.workers.append(dying)
            wait_until(lambda: not workers.workers)
        workers.workers.append(worker_of(store, "last"))
        wait_for(*jobs)
        assert [job.status for job in jobs] == ["failed", "done"]
        assert isinstance(jobs[0].error, ModelFailedError)
        assert jobs[0].id in str(jobs[0].error)


def test_jobs_that_wait_for_a_worker_run_together(store: ModelStore, demo_package: Path) -> None:
    with remote_service(demo_package, 2, max_batch=4) as (service, workers):
        jobs = [submit(service, seed=seed) for seed in range(6)]
        assert [service.queue.position(job) for job in jobs] == list(range(6))
        service.cancel(jobs[0].id)
        assert jobs[0].status == "cancelled"
        first = worker_of(store, "first")
        workers.workers.append(first)
        wait_for(*jobs)
        assert [len(batch) for batch in first.batches] == [4, 1]
        assert set(first.models) == {"demo"}


def test_several_batches_run_at_a_time(store: ModelStore, demo_package: Path) -> None:
    with remote_service(demo_package, 2, max_batch=1) as (service, workers):
        both = [worker_of(store, name) for name in "ab"]
        workers.workers += both
        jobs = [submit(service, num_inference_steps=100) for _ in range(3)]
        wait_until(lambda: all(worker.batches for worker in both))
        assert service.queue.running == 2 and service.queue.waiting == 1
        assert service.queue.position(jobs[2]) == 0
        for job in reversed(jobs):  # first the one that waits
            service.cancel(job.id)
        wait_until(lambda: not service.queue.busy)
        assert [len(worker.batches) for worker in both] == [1, 1]


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_job_that_is_over_frees_its_worker(
    store: ModelStore, demo_package: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []  # of the engine, which nobody may wait for
    steps_of = job_runner._Steps.__call__

    def step(self: Any, each: DenoiseStep) -> None:
        steps.append(each.count)
        steps_of(self, each)

    monkeypatch.setattr(job_runner._Steps, "__call__", step)
    with remote_service(demo_package, 1) as (service, workers):
        workers.workers.append(worker_of(store, "first"))
        job = submit(service, num_inference_steps=150, width=128, height=128)
        wait_until(lambda: job.step >= 1)
        if how == "cancel":
            service.cancel(job.id)
        else:
            job.deadline = 0.0
        wait_for(job)
        after = submit(service)
        wait_for(after)
        assert after.status == "done"
        assert 1 <= steps.count(150) < 150
        assert job.status == ("cancelled" if how == "cancel" else "failed")
        assert any(call.was_cancelled for call in workers.calls)


def test_one_of_a_batch_can_be_cancelled(store: ModelStore, demo_package: Path) -> None:
    with remote_service(demo_package, 1, max_batch=2) as (service, workers):
        jobs = [submit(service, num_inference_steps=20, seed=seed) for seed in (1, 2)]
        workers.workers.append(worker_of(store, "first"))
        wait_until(lambda: jobs[0].step >= 1)
        service.cancel(jobs[0].id)
        wait_for(*jobs)
        assert [job.status for job in jobs] == ["cancelled", "done"]


def test_errors_of_the_library_reach_the_client(store: ModelStore, demo_package: Path) -> None:
    with remote_service(demo_package, 1) as (service, workers):
        workers.workers.append(worker_of(store, "first"))
        bad = submit(service, clip_skip=99)
        good = submit(service)
        wait_for(bad, good)
        assert bad.status == "failed" and isinstance(bad.error, InvalidArgumentError)
        assert good.status == "done" and len(workers.workers[0].batches) == 2


@pytest.mark.parametrize(
    "error",
    [InvalidArgumentError("a"), OutOfMemoryError("b"), PackageError("c"), ModelFailedError("d")],
)
def test_errors_can_be_sent(error: Exception) -> None:
    error.reason = "why"  # type: ignore[attr-defined]
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error) and str(found) == str(error) and found.reason == "why"


def test_a_job_is_sent_as_it_is() -> None:
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    job = Job(ImageRequest("demo", {"prompt": "x", "image": image}), 1, previews=True)
    found = pickle.loads(pickle.dumps(SentJob.of(job))).received()
    assert (found.id, found.count, found.previews) == (job.id, 1, True)
    assert found.request.arguments["image"].tobytes() == image.tobytes()


def test_prompts_that_run_together_are_known_without_an_open_model(
    store: ModelStore, demo_package: Path
) -> None:
    with remote_service(demo_package) as (service, _):
        own = ImageService(store)
        for style in ("plain", "automatic1111"):
            key = submit(service, prompt_style=style).batch_key
            own.queue._waiting.clear()
            assert key is not None and key == submit(own, prompt_style=style).batch_key


def test_a_server_that_waits_for_its_first_worker_is_ready_then(
    store: ModelStore, demo_package: Path
) -> None:
    models = worker_engines.RemoteModels({"demo": demo_package})
    workers = Workers()
    workers.engines = worker_engines.WorkerEngines(workers, 1, models)
    service = ImageService(models, engines=workers.engines)
    thread = threading.Thread(target=service.start)
    thread.start()
    wait_until(lambda: workers.calls)
    assert not service.is_ready
    late = service.submit(ImageRequest("demo", {"prompt": "x", **SMALL}, 0.01))
    wait_for(late)
    assert late.status == "failed" and isinstance(late.error, DeadlineError)
    workers.workers.append(worker_of(store, "first"))
    thread.join(PATIENCE)
    assert service.is_ready and not workers.workers[0].batches
    service.close(0.0)
    workers.close()


def test_closing_ends_jobs_that_wait_for_a_worker(demo_package: Path) -> None:
    with remote_service(demo_package, 2) as (service, workers):
        job = submit(service)
        wait_until(lambda: workers.calls)
        service.close(0.0)
        assert job.status == "cancelled" and service.queue.join(PATIENCE)


def test_workers_of_a_package_that_is_gone_fail_the_jobs(demo_package: Path) -> None:
    class Gone(ModelStore):
        def open(self, *arguments: Any) -> Pipeline:
            raise PackageError("unet/model.onnx was altered")

    with remote_service(demo_package, 1) as (service, workers):
        workers.workers.append(worker_of(Gone({"demo": demo_package}), "first"))
        job = submit(service)
        wait_for(job)
        assert job.status == "failed" and isinstance(job.error, ModelFailedError)


def test_a_server_that_is_replaced_fails_jobs_whose_batch_nobody_can_get(
    store: ModelStore, demo_package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with remote_service(demo_package, 1) as (service, workers):
        models = worker_engines.RemoteModels({"demo": demo_package})
        own, workers.engines = workers.engines, worker_engines.WorkerEngines(workers, 1, models)
        workers.workers.append(worker_of(store, "first"))
        job = submit(service)
        wait_for(job)
        assert isinstance(job.error, ShuttingDownError) and len(workers.calls) == 1
        assert "being replaced" in caplog.text
        workers.engines = own
        after = submit(service)
        wait_for(after)
        assert after.status == "done"


def test_a_call_that_cannot_begin_is_made_again(
    store: ModelStore, demo_package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with remote_service(demo_package, 1) as (service, workers):
        engines, failures = workers.engines, iter([ConnectionError("no controller")] * 2)
        assert engines is not None

        def call(ticket: str, model: str | None) -> Any:
            for error in failures:
                raise error
            return workers(ticket, model)

        engines._call = call
        workers.workers.append(worker_of(store, "first"))
        job = submit(service)
        wait_for(job)
        assert job.status == "done" and "no controller" in caplog.text
        wait_until(lambda: not engines._batches)


def test_a_job_that_is_cancelled_while_it_waits_ends_the_call_for_a_worker(
    store: ModelStore, demo_package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def cancelled() -> int:
        return sum(call.was_cancelled for call in workers.calls)

    with remote_service(demo_package, 2, max_batch=1) as (service, workers):
        jobs = [submit(service, seed=seed) for seed in range(3)]
        wait_until(lambda: [call.is_awaited for call in workers.calls] == [True] * 2)
        service.cancel(jobs[2].id)
        assert cancelled() == 0  # both calls have a job
        service.cancel(jobs[0].id)
        wait_until(lambda: cancelled() == 1)
        service.cancel(jobs[1].id)
        wait_until(lambda: cancelled() == 2)
        assert workers.engines is not None
        wait_until(lambda: not service.queue._engines_awaited)
        assert not workers.engines._waiting and not workers.engines._batches
        assert len(workers.calls) == 2 and "no worker" not in caplog.text
        workers.workers.append(worker_of(store, "first"))
        after = submit(service)
        wait_for(after)
        assert after.status == "done"


def scripted_engines(
    package: Path, count: int, scripts: Iterator[list[Message | Exception]]
) -> tuple[worker_engines.WorkerEngines, worker_engines.RemoteModels, list[str | None]]:
    """Engines whose calls send what the scripts say, and the models of these calls."""
    models = worker_engines.RemoteModels({"a": package, "b": package})
    called: list[str | None] = []

    def call(ticket: str, model: str | None) -> ScriptedCall:
        called.append(model)
        return ScriptedCall(next(scripts))

    return worker_engines.WorkerEngines(call, count, models), models, called


def test_a_batch_of_another_model_than_its_lease_runs_again_with_its_own(
    demo_package: Path,
) -> None:
    """As when the jobs of the first model were cancelled while its worker was awaited."""
    dies: list[Message | Exception] = [WorkerReady("w", ("a",)), RuntimeError("killed")]
    engines, _, called = scripted_engines(demo_package, 1, iter([dies] * 3))
    first, other = (Job(ImageRequest(name, {"prompt": "x"}), 1) for name in "ab")
    with engines.free(first, lambda: True) as run:
        assert run is not None
        run([other])
    assert called == ["a", "b", "b"] and isinstance(other.error, ModelFailedError)


def test_a_worker_that_died_unnoticed_has_no_model_open_for_ever(demo_package: Path) -> None:
    scripts: list[list[Message | Exception]] = [[WorkerReady(name, ("a",))] for name in "pqrs"]
    engines, models, _ = scripted_engines(demo_package, 2, iter(scripts))
    job = Job(ImageRequest("a", {"prompt": "x"}), 1)
    for _ in scripts:
        with engines.free(job, lambda: True):
            pass
    assert models.model("a").workers == {"r", "s"}

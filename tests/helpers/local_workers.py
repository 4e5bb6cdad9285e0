"""Workers in threads of the test's process, reached like those in other processes."""

from __future__ import annotations

import asyncio
import pickle
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

from sdexport.server.batch_worker import BatchWorker
from sdexport.server.image_service import ImageService
from sdexport.server.model_store import ModelStore
from sdexport.server.server_settings import ServerSettings
from sdexport.server.worker_engines import RemoteModels, WorkerEngines
from sdexport.server.worker_messages import Message, SentJob, StepDone, WorkerReady
from tests.helpers.live_server import PATIENCE


def sent(value: Any) -> Any:
    """What arrives in another process."""
    return pickle.loads(pickle.dumps(value))


class Worker:
    """A worker: `dies_at` says which message it does not send any more.

    batches: the jobs that it was sent, in order.
    """

    def __init__(self, name: str, models: ModelStore) -> None:
        self.name, self.worker = name, BatchWorker(models)
        self.is_free = asyncio.Lock()
        self.dies_at: Callable[[SentJob, Message], bool] = lambda job, message: False
        self.batches: list[list[SentJob]] = []
        self.models: list[str | None] = []
        self.ended = threading.Semaphore(0)


class Call:
    """A call to a worker, as WorkerCall. is_awaited: whether its first message is, or was."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._messages: queue.Queue[Message | Exception | None] = queue.Queue()
        self.put = self._messages.put
        self.task: asyncio.Task[None] | None = None
        self.was_cancelled = self.is_awaited = False

    def __iter__(self) -> Iterator[Message]:
        self.is_awaited = True
        while (message := self._messages.get(timeout=PATIENCE)) is not None:
            if isinstance(message, Exception):
                raise message
            yield message

    def cancel(self) -> None:
        self.was_cancelled = True
        self._loop.call_soon_threadsafe(lambda: self.task and self.task.cancel())


class ScriptedCall:
    """A call that sends given messages, and raises given errors."""

    def __init__(self, script: Sequence[Message | Exception]) -> None:
        self._script = script

    def __iter__(self) -> Iterator[Message]:
        for each in self._script:
            if isinstance(each, Exception):
                raise each
            yield each

    def cancel(self) -> None: ...


class Workers:
    """Calls whichever of `workers` is free; waits for one while there is none."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.workers: list[Worker] = []
        self.calls: list[Call] = []
        self.engines: WorkerEngines | None = None

    def __call__(self, ticket: str, model: str | None) -> Call:
        call = Call(self.loop)
        self.calls.append(call)

        def begin() -> None:
            call.task = self.loop.create_task(self._serve(call, ticket, model))

        self.loop.call_soon_threadsafe(begin)
        return call

    async def _serve(self, call: Call, ticket: str, model: str | None) -> None:
        try:
            while not (free := [w for w in self.workers if not w.is_free.locked()]):
                await asyncio.sleep(0.002)
            async with free[0].is_free:
                await self._run(free[0], call, ticket, model)
            call.put(None)
        except asyncio.CancelledError:
            call.put(RuntimeError("the call was cancelled"))
        except Exception as error:  # noqa: BLE001  the caller hears of it
            call.put(error)
        finally:
            for worker in self.workers:
                worker.ended.release()

    async def _run(self, worker: Worker, call: Call, ticket: str, model: str | None) -> None:
        worker.models.append(model)
        call.put(sent(WorkerReady(worker.name, ("demo",))))
        assert self.engines is not None
        batch = sent(await self.engines.batch_of(ticket))
        if batch is None:
            return
        worker.batches.append(batch)
        async with aclosing(worker.worker.batch(batch)) as messages:
            async for message in messages:
                if not isinstance(message, WorkerReady) and worker.dies_at(
                    batch[message.place], message
                ):
                    self.workers.remove(worker)
                    raise RuntimeError(f"{worker.name} died")
                call.put(sent(message))

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(PATIENCE)
        self.loop.close()


def at_step(number: int, prompt: str = "") -> Callable[[SentJob, Message], bool]:
    """Dies when a step of a job with a prompt is done."""
    return lambda job, message: (
        isinstance(message, StepDone)
        and message.step == number
        and prompt in job.request.arguments["prompt"]
    )


@contextmanager
def remote_service(
    package: Path, count: int = 2, *, waits: bool = False, **settings: Any
) -> Iterator[tuple[ImageService, Workers]]:
    """A service whose batches run on workers; the test adds them."""
    made = ServerSettings(**settings)
    models = RemoteModels({"demo": package}, max_batch=made.max_batch)
    workers = Workers()
    workers.engines = WorkerEngines(workers, count, models, waits=waits)
    service = ImageService(models, settings=made, engines=workers.engines)
    service.start()
    try:
        yield service, workers
    finally:
        service.close(0.0)
        for worker in workers.workers:
            worker.worker.close()
        workers.close()

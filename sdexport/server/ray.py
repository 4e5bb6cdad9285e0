"""The image server on Ray Serve; needs the extra `ray`.

`serve run sdexport.server.ray:app package=...` deploys two things. ImageServer, one replica,
answers all requests and has the queue. ImageWorker, one replica or more, generates images and has
no state: what one that dies was doing runs on another.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from sdexport.engines.errors import MissingDependencyError
from sdexport.engines.messages import import_failure, one_line

try:
    from ray import serve
except ImportError as error:
    raise MissingDependencyError(
        f"sdexport.server.ray needs Ray Serve, which is not installed{import_failure(error)}; run: "
        "pip install 'sdexport[ray]'"
    ) from error

from sdexport.server.app import create_app
from sdexport.server.batch_worker import BatchWorker
from sdexport.server.image_service import ImageService
from sdexport.server.job_tracing import observers_of
from sdexport.server.model_store import ModelStore
from sdexport.server.ray_arguments import RayArguments, ray_arguments
from sdexport.server.server_metrics import ServerMetrics
from sdexport.server.server_settings import ServerSettings
from sdexport.server.worker_engines import RemoteModels, WorkerEngines
from sdexport.server.worker_messages import Message, SentJob, WorkerReady

_log = logging.getLogger(__name__)
SERVER, WORKER = "ImageServer", "ImageWorker"
"""The names of the deployments."""
_HEAD = "node:__internal_head__"
"""A resource that only the head node of a cluster of Ray has."""
_AHEAD = 1
"""Calls that wait on a replica while it runs a batch, so that it need not be found again."""
_FAREWELL = 5.0
"""Seconds in which a worker that is removed tells the server so."""
_SHORTEST, _LONGEST = 0.5, 10.0
"""Seconds between two reports of a replica's calls, from which replicas are added or removed."""


def app(arguments: dict[str, Any]) -> Any:
    """The application that Ray Serve deploys.

    Args:
      arguments: those of RayArguments by name, as `serve run` or a configuration has them.
    Raises: InvalidArgumentError: one that is unknown, missing or out of range.
    """
    made = ray_arguments(arguments)
    made = made.model_copy(update=made.absolute())
    worker = serve.deployment(
        ImageWorker,
        name=WORKER,
        max_ongoing_requests=1 + _AHEAD,
        ray_actor_options={"num_cpus": made.num_cpus, "num_gpus": made.num_gpus},
        graceful_shutdown_timeout_s=made.graceful_shutdown_timeout_s,
        **_replicas(made),
    )
    server = serve.deployment(
        serve.ingress(_present_app)(ImageServer),
        name=SERVER,
        num_replicas=1,  # it has the queue
        # the server itself answers that it has too many requests; its workers must get through
        max_ongoing_requests=2 * ServerSettings.max_connections + 2 * made.max_replicas,
        ray_actor_options={"num_cpus": made.server_cpus, "resources": _place(made)},
        graceful_shutdown_timeout_s=made.grace + made.graceful_shutdown_timeout_s,
    )
    return server.bind(made, worker.bind(made))


def _place(arguments: RayArguments) -> dict[str, float]:
    """Resources of the node on which the server runs: the head, which no autoscaler removes."""
    return {_HEAD: 0.001} if arguments.server_on_head else {}


def _replicas(arguments: RayArguments) -> dict[str, Any]:
    """How many workers there are: one call is made for each batch that runs or waits."""
    least, most = arguments.min_replicas, arguments.max_replicas
    if least == most:
        return {"num_replicas": most}
    delays = arguments.upscale_delay_s, arguments.downscale_delay_s
    interval = min(max(min(delays) / 3, _SHORTEST), _LONGEST)
    return {
        "autoscaling_config": {
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": 1,
            "upscale_delay_s": arguments.upscale_delay_s,
            "downscale_delay_s": arguments.downscale_delay_s,
            "metrics_interval_s": interval,
            "look_back_period_s": 3 * interval,
        }
    }


class ImageWorker:
    """Generates the images of one batch at a time."""

    def __init__(self, arguments: RayArguments) -> None:
        self._worker = BatchWorker(arguments.models())
        self._worker.start(warm_up=arguments.warm_up)
        self._is_free = asyncio.Lock()
        context = serve.get_replica_context()
        self._id, self._application = context.replica_id.unique_id, context.app_name

        async def opened(name: str) -> _OpenModel:
            return await self._open(name)

        most = arguments.max_models or len(arguments.package)
        self._opened = serve.multiplexed(max_num_models_per_replica=most)(opened)

    async def run(self, ticket: str, model: str | None) -> AsyncGenerator[Message]:
        """Say when the worker is free, take the batch of a ticket, and say what happens to it.

        Args:
          model: to be opened before.
        """
        async with self._is_free:
            store = self._worker.models
            await self._opened(store.model(model).name)
            yield WorkerReady(self._id, tuple(m.name for m in store.models if m.is_open))
            sent = await self._server().batch_of.remote(ticket)
            if sent is not None:
                # jobs of another model, if all of the first one's were cancelled or taken
                await self._opened(store.model(sent[0].request.model).name)
                async with aclosing(self._worker.batch(sent)) as messages:
                    async for message in messages:
                        yield message

    async def _open(self, name: str) -> _OpenModel:
        """Open a model. One that cannot be opened fails the jobs that need it."""
        store = self._worker.models
        await self._worker.in_thread(partial(_open, store, name))
        return _OpenModel(store, name)

    def _server(self) -> Any:
        return serve.get_deployment_handle(SERVER, self._application)

    async def __del__(self) -> None:
        """Close the models; Ray Serve calls this when nothing runs any more."""
        with suppress(Exception):  # the server may have ended as well
            async with asyncio.timeout(_FAREWELL):
                await self._server().worker_ended.remote(self._id)
        await asyncio.to_thread(self._worker.close)


def _open(store: ModelStore, name: str) -> None:
    try:
        store.open(store.model(name))
    except Exception as error:  # noqa: BLE001  the job that needs it fails for the same reason
        _log.warning("the model %s could not be opened: %s", name, one_line(error, 1000))


class _OpenModel:
    """A model as Ray Serve sees it, which closes the one that was used least lately."""

    def __init__(self, store: ModelStore, name: str) -> None:
        self._store, self._name, self._is_open = store, name, True

    def __del__(self) -> None:
        """Close it; Ray Serve and Python may both call this, and it may be open again by then."""
        if self._is_open:
            self._is_open = False
            self._store.close(self._name)


class ImageServer:
    """Answers all requests and has the queue."""

    def __init__(self, arguments: RayArguments, workers: Any) -> None:
        global _app
        settings, metrics = arguments.settings, ServerMetrics()
        models: RemoteModels = arguments.models(RemoteModels)
        self._models = models
        self._engines = WorkerEngines(
            partial(_called, workers, len(arguments.package) > 1),
            arguments.max_replicas,
            models,
            waits=arguments.min_replicas > 0,
        )
        observers = observers_of(metrics)
        self._service = ImageService(models, arguments.names, settings, observers, self._engines)
        _app = create_app(self._service, settings, metrics)
        threading.Thread(target=self._start, name="start", daemon=True).start()

    def _start(self) -> None:
        """Wait for the first worker, outside of the event loop."""
        try:
            self._service.start()
        except Exception as error:  # noqa: BLE001  /readyz says that it is not ready
            _log.error("the server cannot start: %s", one_line(error, 1000))

    async def batch_of(self, ticket: str) -> Sequence[SentJob] | None:
        """The batch for a worker that is free."""
        return await self._engines.batch_of(ticket)

    async def worker_ended(self, worker: str) -> None:
        """A worker was removed, and has no model open any more."""
        self._models.note_open(worker, ())

    async def __del__(self) -> None:
        """Let jobs end within the grace period; Ray Serve calls this when it stops the server."""
        await asyncio.to_thread(self._service.close)


_app: Any = None
"""The application of this process, which is a replica of ImageServer."""


def _present_app() -> Any:
    """What Ray Serve calls in the replica after it made the ImageServer."""
    return _app


class _Call:
    """A call of ImageWorker.run."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def __iter__(self) -> Iterator[Message]:
        try:
            yield from self._response
        except asyncio.CancelledError as error:  # not an Exception, and not of this thread
            raise RuntimeError("the call was cancelled") from error

    def cancel(self) -> None:
        """Cancel it."""
        self._response.cancel()


def _called(workers: Any, chooses: bool, ticket: str, model: str | None) -> _Call:
    """Call a worker that is free.

    Args:
      chooses: whether one is preferred that has the model open.
    """
    options: Mapping[str, Any] = {"multiplexed_model_id": model} if chooses and model else {}
    return _Call(workers.options(stream=True, **options).run.remote(ticket, model))

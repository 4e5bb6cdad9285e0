"""The pipeline as a model of Triton's Python backend; its graphs are other models of the server."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sdexport.engines.errors import InvalidArgumentError, SDExportError
from sdexport.engines.messages import one_line
from sdexport.engines.session import Session
from sdexport.runtime.pipeline import Pipeline
from sdexport.server.image_request import ImageRequest
from sdexport.server.jobs import DONE, Job
from sdexport.server.model_store import Model
from sdexport.server.output_images import encoded_image
from sdexport.server.registered_names import RegisteredNames
from sdexport.server.request_checks import checked_arguments, output_size, public_text
from sdexport.server.server_errors import JobCancelledError
from sdexport.server.server_settings import ServerSettings
from sdexport.triton.batched_rows import Row, run_rows
from sdexport.triton.bls_session import BlsSession
from sdexport.triton.pipeline_tensors import (
    INPUTS,
    OUTPUTS,
    arguments_of_rows,
    json_text,
    text_tensor,
)
from sdexport.triton.repository_record import RECORD, RepositoryRecord
from sdexport.triton.served_package import load_served

_log = logging.getLogger(__name__)
TRITON = "triton_python_backend_utils"
"""The module that Triton's Python backend brings."""


@dataclass
class _Request:
    """A request of Triton: its rows, or why it cannot be answered."""

    request: Any
    rows: list[Row] = field(default_factory=list)
    error: Exception | None = None


class PipelineModel:
    """What Triton calls; model.py of a repository derives TritonPythonModel from it.

    Attributes:
      folder: of the model's version.
    """

    folder: ClassVar[Path]

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the package; called once, before any request.

        Raises: TritonModelException: the repository is damaged, with the reason in one line.
        """
        self._triton: Any = importlib.import_module(TRITON)
        try:
            self._load(args.get("model_name", ""))
        except (SDExportError, OSError) as error:
            raise self._triton.TritonModelException(one_line(error)) from None

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests: rows of all of them that can run together are one pipeline call."""
        found = [self._rows(request) for request in requests]
        run_rows([row for each in found for row in each.rows], self._pipeline)
        return [self._response(each) for each in found]

    def finalize(self) -> None:
        """Close the pipeline; called once, when the model is unloaded."""
        self._pipeline.close()

    def _load(self, name: str) -> None:
        folder = type(self).folder
        record = RepositoryRecord.read(folder / RECORD)
        package = load_served(folder / record.package, record, folder.parents[1])
        sessions: dict[str, Session] = {
            model.graph: BlsSession(
                model.graph,
                model.inputs,
                model.outputs,
                model=model.name,
                max_batch=model.max_batch_size,
                triton=self._triton,
            )
            for model in record.models
        }
        self._pipeline = Pipeline(package, sessions=sessions)
        self._model = Model(name or record.name, package.folder, package, self._pipeline)
        self._names = RegisteredNames()
        self._settings = ServerSettings(
            max_batch=record.max_batch,
            max_images=record.max_batch,
            max_pixels=record.max_pixels,
            max_steps=record.max_steps,
        )

    def _rows(self, request: Any) -> _Request:
        found = _Request(request)
        try:
            rows = arguments_of_rows(self._arrays(request))
            jobs = [self._job(given, _place(place, len(rows))) for place, given in enumerate(rows)]
            _check_sizes(jobs)
            found.rows = [Row(job, request.is_cancelled) for job in jobs]
        except Exception as error:  # noqa: BLE001  other requests are answered
            found.error = error
        return found

    def _job(self, given: Mapping[str, Any], place: str) -> Job:
        """The job of a row.

        Args:
          place: what a message calls the row.
        Raises: InvalidArgumentError: an argument that is out of range or beyond a limit.
        """
        try:
            arguments, count = checked_arguments(given, self._model, self._names, self._settings)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{place}{error}") from error
        job = Job(ImageRequest(self._model.name, arguments), count)
        job.size = output_size(arguments, self._model)
        return job

    def _arrays(self, request: Any) -> dict[str, np.ndarray]:
        """The inputs that a request has, by name."""
        found = {}
        for each in INPUTS:
            tensor = self._triton.get_input_tensor_by_name(request, each.name)
            if tensor is not None:
                found[each.name] = tensor.as_numpy()
        return found

    def _response(self, found: _Request) -> Any:
        triton = self._triton
        try:
            error = found.error or _first_error(found.rows)
            if error is not None:
                raise error
            tensors = self._outputs(found)
        except Exception as failure:  # noqa: BLE001  other requests are answered
            return triton.InferenceResponse(error=self._error(failure))
        return triton.InferenceResponse(output_tensors=tensors)

    def _outputs(self, found: _Request) -> list[Any]:
        """The tensors that the client asks for."""
        jobs = [row.job for row in found.rows]
        wanted = set(found.request.requested_output_names()) or {each.name for each in OUTPUTS}
        return [
            self._triton.Tensor(each.name, _VALUES[each.name](jobs))
            for each in OUTPUTS
            if each.name in wanted
        ]

    def _error(self, error: Exception) -> Any:
        """The error as the client reads it; what it should not read is logged."""
        codes = self._triton.TritonError
        if isinstance(error, JobCancelledError):
            return codes(one_line(error), codes.CANCELLED)
        if isinstance(error, InvalidArgumentError):
            return codes(self._public(error), codes.INVALID_ARG)
        if isinstance(error, (SDExportError, OSError, MemoryError)):
            _log.error("%s", one_line(error, 1000))
            return codes(self._public(error), codes.INTERNAL)
        _log.error("%s", one_line(error, 1000), exc_info=error)
        name = type(error).__name__
        return codes(f"this is a bug in sdexport: {name}; the log has the details", codes.INTERNAL)

    def _public(self, error: Exception) -> str:
        """The message without the folder of the package."""
        return public_text(one_line(error, 1000), {str(self._model.folder): self._model.name})


def _place(place: int, count: int) -> str:
    """What a message calls one of several rows."""
    return f"row {place}: " if count > 1 else ""


def _check_sizes(jobs: Sequence[Job]) -> None:
    """Raises: InvalidArgumentError: no rows, or images of different sizes."""
    if not jobs:
        raise InvalidArgumentError("the request has no rows")
    sizes = {job.size for job in jobs}
    if len(sizes) > 1:
        listed = " and ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise InvalidArgumentError(
            f"the images of a request must have one size, got {listed}; send a request for each"
        )


def _first_error(rows: Sequence[Row]) -> Exception | None:
    """Why the first row that failed did."""
    for place, row in enumerate(rows):
        error = row.job.error
        if row.job.status != DONE and error is not None:
            if isinstance(error, InvalidArgumentError):
                return InvalidArgumentError(f"{_place(place, len(rows))}{error}")
            return error
    return None


def _signed(seed: int) -> int:
    """A seed as a signed 64-bit number, which means the same seed."""
    return seed - 2**64 if seed >= 2**63 else seed


_VALUES: Mapping[str, Callable[[Sequence[Job]], np.ndarray]] = {
    "image": lambda jobs: np.stack([np.asarray(job.images[0], np.uint8) for job in jobs]),
    "png": lambda jobs: text_tensor([encoded_image(job.images[0]) for job in jobs]),
    "parameters": lambda jobs: text_tensor([json_text(j.parameters[0].to_dict()) for j in jobs]),
    "seed": lambda jobs: np.array(
        [[_signed(int(job.request.arguments["seed"]))] for job in jobs], np.int64
    ),
    "nsfw_content_detected": lambda jobs: np.array([[any(job.flagged or ())] for job in jobs]),
    "warnings": lambda jobs: text_tensor([json_text(job.warnings) for job in jobs]),
}
"""The values of each output, with a row for each job."""

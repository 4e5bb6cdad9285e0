"""One backend of one package in a separate process: `python -m sdexport.bench.bench_worker`.

Speaks the protocol of engines/worker_process.py with the requests open, check, component and
image. Outputs of components and images are written to files, after the time was taken.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.bench.workload import prompt_components
from sdexport.engines.array_files import read_array, read_arrays
from sdexport.engines.errors import InvalidArgumentError, WorkerError
from sdexport.engines.process_memory import resident_mb, timed
from sdexport.engines.worker_process import serve
from sdexport.runtime.packages.package import Package
from sdexport.runtime.pipeline import Pipeline

LIBRARIES = {
    "onnxruntime": ("onnxruntime",),
    "onnxruntime-cuda": ("onnxruntime-gpu", "onnxruntime"),
    "webgpu": ("onnxruntime-ep-webgpu",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
}
LARGEST = 2**32 - 1
"""Bytes of a file of arrays, which the benchmark itself wrote."""


class BenchWorker:
    """Keeps the pipeline open between requests."""

    def __init__(self) -> None:
        self._pipe: Pipeline | None = None

    @property
    def pipe(self) -> Pipeline:
        """The open pipeline.

        Raises: InvalidArgumentError: there is none yet.
        """
        if self._pipe is None:
            raise InvalidArgumentError("no package is open; send the request 'open' first")
        return self._pipe

    def open(
        self,
        model: str,
        backend: str = "onnxruntime",
        options: Mapping[str, Any] | None = None,
        components: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Open these components; by default those that generate an image from a prompt.

        Returns: components: for each its inputs and the seconds it took to open; versions of the
          libraries; resident_mb and private_mb of this process.
        """
        package = Package.load(model, verify=False)
        self._pipe = Pipeline(package, backend, **(options or {}))
        opened = {}
        for name in components or prompt_components(package):
            started = time.perf_counter()
            inputs = self._pipe.session(name).inputs
            opened[name] = {
                "open_s": time.perf_counter() - started,
                "inputs": [[s.name, s.dtype, list(s.shape)] for s in inputs],
            }
        return {"components": opened, "versions": _versions(backend), **resident_mb()}

    def check(
        self, model: str, backend: str = "onnxruntime", options: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Compare with the reference outputs of PyTorch in the package.

        Returns: passed: None if the package has none; checks: see sdexport.verification.verifier.
        """
        from sdexport.verification.verifier import verify

        if not (Path(model) / "reference").is_dir():
            return {"passed": None, "checks": []}
        checks = verify(model, backend, **(options or {}))
        return {"passed": all(c.passed for c in checks), "checks": [c.to_dict() for c in checks]}

    def component(self, name: str, feeds: str, output: str | None = None) -> dict[str, Any]:
        """Run a component once with the arrays of a .npz file as inputs."""
        session, arrays = self.pipe.session(name), load_arrays(feeds)
        outputs, measured = timed(lambda: session.run(arrays))
        if output:
            np.savez(output, **outputs)
        return measured

    def image(
        self, arguments: dict[str, Any], latents: str | None = None, output: str | None = None
    ) -> dict[str, Any]:
        """Generate once with these arguments of the pipeline; also returns seconds per stage."""
        if latents is not None:
            arguments = {
                **arguments,
                "latents": read_array(Path(latents), error=WorkerError, limit=LARGEST),
            }
        result, measured = timed(lambda: self.pipe(**arguments))
        if output:
            np.save(output, np.asarray(result.images[0]))
        return measured | {"stages": dict(result.seconds)}


@functools.cache
def load_arrays(path: str) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, which is read once."""
    return read_arrays(Path(path), error=WorkerError, limit=LARGEST)


def _versions(backend: str) -> dict[str, str]:
    found = {}
    for name in ("numpy", *LIBRARIES.get(backend, ())):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Handle requests until stdin ends."""
    worker = BenchWorker()
    names = ("open", "check", "component", "image")
    serve({name: getattr(worker, name) for name in names})


if __name__ == "__main__":
    main()

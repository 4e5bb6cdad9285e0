"""One backend of one package in a process of its own: `python -m sdexport.bench.bench_worker`.

Speaks the protocol of engines/worker_process.py. Requests: open, check, component, picture.
Answers of components and pictures go to files; only they are outside of what is timed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines.process_memory import resident_mb, timed
from sdexport.engines.worker_process import serve
from sdexport.runtime.packages.package import Package
from sdexport.runtime.pipeline import Pipeline

LIBRARIES = {
    "onnxruntime": ("onnxruntime",),
    "onnxruntime-cuda": ("onnxruntime-gpu", "onnxruntime"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
}
PAINTED = ("text_encoder", "text_encoder_2", "unet", "vae_decoder")
"""Components of a picture from a text."""


class BenchWorker:
    """Holds the pipeline between requests."""

    def __init__(self) -> None:
        self._pipe: Pipeline | None = None

    @property
    def pipe(self) -> Pipeline:
        if self._pipe is None:
            raise ValueError("no package is open; ask 'open' first")
        return self._pipe

    def open(
        self,
        model: str,
        backend: str = "onnxruntime",
        options: Mapping[str, Any] | None = None,
        components: Sequence[str] = PAINTED,
    ) -> dict[str, Any]:
        """Open those components that the package has; their inputs, and what opening took."""
        package = Package.load(model, verify=False)
        self._pipe = Pipeline(package, backend, **(options or {}))
        opened = {}
        for name in components:
            if name in package.manifest.components:
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
        """How far the answers are from those of PyTorch that the package holds.

        Returns: passed: None if it holds none; checks: see sdexport.verification.verifier.
        """
        from sdexport.verification.verifier import verify

        if not (Path(model) / "reference").is_dir():
            return {"passed": None, "checks": []}
        checks = verify(model, backend, **(options or {}))
        return {"passed": all(c.passed for c in checks), "checks": [c.to_dict() for c in checks]}

    def component(self, name: str, feeds: str, output: str | None = None) -> dict[str, Any]:
        """Run a component once on the arrays of a .npz."""
        session, arrays = self.pipe.session(name), load_arrays(feeds)
        answers, measured = timed(lambda: session.run(arrays))
        if output:
            np.savez(output, **answers)
        return measured

    def picture(
        self, arguments: dict[str, Any], latents: str | None = None, output: str | None = None
    ) -> dict[str, Any]:
        """Paint once, with the pipeline's arguments; also the seconds of each stage."""
        given = {} if latents is None else {"latents": np.load(latents)}
        result, measured = timed(lambda: self.pipe(**arguments, **given))
        if output:
            np.save(output, np.asarray(result.images[0]))
        return measured | {"stages": dict(result.seconds)}


@functools.cache
def load_arrays(path: str) -> dict[str, np.ndarray]:
    """The arrays of a .npz, read from the disk once."""
    with np.load(path, allow_pickle=False) as data:
        return dict(data)


def _versions(backend: str) -> dict[str, str]:
    found = {}
    for name in ("numpy", *LIBRARIES.get(backend, ())):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Answer requests until stdin ends."""
    worker = BenchWorker()
    names = ("open", "check", "component", "picture")
    serve({name: getattr(worker, name) for name in names})


if __name__ == "__main__":
    main()

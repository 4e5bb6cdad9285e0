"""Memory that cannot be allocated is recognised, whichever library says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sdexport.engines.errors import EngineError, OutOfMemoryError, engine_error, is_out_of_memory

RUN = """
import resource, sys
import numpy as np
from sdexport import OutOfMemoryError, open_session
with open_session(sys.argv[1], sys.argv[2], threads=1) as session:
    latents = np.zeros((1, 4, 8, 8), np.float32)
    session.run({session.inputs[0].name: latents})
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 10**8,) * 2)
    try:
        session.run({session.inputs[0].name: np.zeros((1, 4, 512, 512), np.float32)})
    except OutOfMemoryError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_backend_without_memory(package: Path, backend: str) -> None:
    """OpenVINO raises nothing and gives empty outputs."""
    pytest.importorskip(backend)
    graph = package / "vae_decoder" / "model.onnx"
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(graph), backend], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("vae_decoder: "), done.stdout + done.stderr
    assert "a smaller size, fewer images at once" in done.stdout


@pytest.mark.parametrize(
    "text",
    [
        "Failed to allocate memory for requested buffer of size 8589934592",
        "std::bad_alloc",
        "bad allocation",
        "Check 'data != nullptr' failed: Failed to allocate 1024 bytes of memory",
        "CUDA_ERROR_OUT_OF_MEMORY",
        "out of memory (cudaErrorMemoryAllocation)",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
        "Unable to allocate 8.00 GiB for an array with shape (1, 2)",
        "[TRT] Requested amount of GPU memory could not be allocated.",
        "CUDA error: OutOfMemory",
        "BFCArena: Available memory of 10 is smaller than requested bytes of 20",
    ],
)
def test_messages_about_memory(text: str) -> None:
    assert is_out_of_memory(text)
    error = engine_error(f"unet: {text}")
    assert isinstance(error, OutOfMemoryError) and isinstance(error, MemoryError)
    assert isinstance(error, EngineError) and str(error).startswith(f"unet: {text}; ")


@pytest.mark.parametrize("text", ["no such device", "node allocated to the CPU", "memory layout"])
def test_other_messages(text: str) -> None:
    assert not is_out_of_memory(text) and type(engine_error(text)) is EngineError

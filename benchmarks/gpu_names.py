"""The contenders of `benchmarks.gpu`, by the names that its tasks and reports use."""

from __future__ import annotations

TORCH, TORCH_GRAPH, COMPILED = "torch", "torch-graph", "torch-compile"
TORCHES = (TORCH, TORCH_GRAPH, COMPILED)
"""diffusers: eager in float16 and channels last; its UNet as a CUDA graph; and compiled."""
ORT, ORT_GRAPH = "onnxruntime-cuda", "onnxruntime-cuda-graph"
"""Ours: the backend; and the experiment of gpu_ort.py."""
PLANS = ("tensorrt-rtx", "tensorrt")
CONTENDERS = (*TORCHES, ORT, ORT_GRAPH, *PLANS)

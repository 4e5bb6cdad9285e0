"""Torch modules to ONNX graphs: wrappers, tracing, precision passes."""

"""ONNX Runtime as a Session."""

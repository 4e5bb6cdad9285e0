"""ONNX Runtime on graphs prepared for this processor; docs/prepared-graphs.md says why."""

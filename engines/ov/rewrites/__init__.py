"""Rewrites of OpenVINO models that a CPU runs faster; docs/openvino-rewrites.md says why."""

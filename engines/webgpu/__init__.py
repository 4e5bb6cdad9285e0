"""ONNX Runtime on any vendor's GPU through WebGPU: Vulkan, Direct3D 12 or Metal."""

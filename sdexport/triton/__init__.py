"""Model repositories for NVIDIA Triton, and the pipeline as a model of its Python backend."""

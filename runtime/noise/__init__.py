"""Noise equal to torch.randn, on the CPU and as a CUDA device draws it."""

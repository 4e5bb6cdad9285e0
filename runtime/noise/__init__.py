"""Noise equal to torch.randn: that of PyTorch's CPU generator and that of a CUDA device."""

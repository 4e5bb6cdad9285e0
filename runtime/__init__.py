"""Stable Diffusion without PyTorch: tokenizer, noise, schedulers, guidance, pipelines.

It needs NumPy and Pillow, and an inference engine through `sdexport.engines`. The names that most
programs use are exported by `sdexport`.
"""

"""Model families: everything that differs between SD, SDXL, its refiner, LCM, inpainting.

Export, verification, builds, packages and the pipeline look these up in a `ModelFamily`; none of
them compares component names or tests for a family by name. To add a family, write a file such as
`stable_diffusion.py` and list it in `families.py`.
"""

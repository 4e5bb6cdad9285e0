"""Model families: everything that differs between SD, SDXL, its refiner, LCM, inpainting.

Export, verification, builds, packages and the pipeline ask a `ModelFamily`; none of them compares
component names or asks "is it SDXL?". To add a family, write a file such as `stable_diffusion.py`
and list it in `families.py`.
"""

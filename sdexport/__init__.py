"""sdexport: a Stable Diffusion checkpoint becomes one folder that paints without PyTorch."""

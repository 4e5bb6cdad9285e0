"""The image server of `sdexport serve`; needs the extra `serve`."""

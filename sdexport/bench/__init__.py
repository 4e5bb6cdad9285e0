"""`sdexport bench`: what a package costs on each backend."""

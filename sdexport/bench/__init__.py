"""`sdexport bench`: how fast a package runs on each backend."""

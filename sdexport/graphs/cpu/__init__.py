"""Graph rewrites for CPUs that `sdexport build` applies."""

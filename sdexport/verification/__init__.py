"""Reference outputs of PyTorch, and comparing a package with them."""

"""Model families: components, graph inputs and outputs, defaults, conditioning."""

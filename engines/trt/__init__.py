"""TensorRT and TensorRT-RTX as a Session, and building engines for them."""

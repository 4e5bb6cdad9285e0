"""A small reader of ONNX files that needs no onnx package: external data, tensor specs, digests."""

"""PyTorch modules: made from a factory, exported to ONNX, and a module again at the end."""

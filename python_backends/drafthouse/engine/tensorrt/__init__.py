"""TensorRT: an engine file (`model.plan`) run on a GPU with PyTorch tensors as memory. Only this package imports `tensorrt`."""

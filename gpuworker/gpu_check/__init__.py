"""`python -m gpuworker.gpu_check`: what one GPU does with the weight cache, measured on it.

The device's half of `remontoir gpu-check` (loadtest/gpu_check is the other): it runs the product's
own pages and engines, says what was measured beside what was wanted, and writes that as JSON. It
needs numpy, msgspec and cuda-bindings, and for engines TensorRT; no pycuda, ONNX or ONNX Runtime.
"""

"""`remontoir gpu-check`: one command that says what this product does on a GPU, bar by bar.

Owns the order of the steps, the models, the table and the JSON. What concerns the device alone is
measured by `python -m gpuworker.gpu_check`, started as a process of its own: it may break the
device's context or be killed, and the other steps still run.
"""

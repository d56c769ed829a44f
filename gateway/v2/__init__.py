"""The Open Inference Protocol beside inference: metadata, statistics, the model repository."""

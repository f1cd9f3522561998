"""What makes it fast, each beside its plain reference: attention back-ends."""

from sweeptune.kernels.attention import Backend, backend_of, model_inputs, prepare, resolve

__all__ = ["Backend", "backend_of", "model_inputs", "prepare", "resolve"]

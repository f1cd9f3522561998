"""Training: the loop, evaluation, proofs, checkpoints and what is measured on the way."""

from sweeptune.training.run import run

__all__ = ["run"]

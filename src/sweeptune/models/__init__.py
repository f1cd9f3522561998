"""Models: where they come from and how they are loaded."""

from sweeptune.models.load import architecture_digest, load_config, load_model, load_tokenizer, locate, weights_digest

__all__ = ["architecture_digest", "load_config", "load_model", "load_tokenizer", "locate", "weights_digest"]

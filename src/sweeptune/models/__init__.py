"""Models: where they come from and how they are loaded.

>>> from sweeptune.models import load_model, load_tokenizer
>>> model, tokenizer = load_model("internlm/internlm2-1_8b"), load_tokenizer("internlm/internlm2-1_8b")
"""

from sweeptune.models.internlm2 import register
from sweeptune.models.load import architecture_digest, load_config, load_model, load_tokenizer, locate, weights_digest

__all__ = ["architecture_digest", "load_config", "load_model", "load_tokenizer", "locate", "weights_digest"]

register()

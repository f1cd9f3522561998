"""The model for tests: small, and its tokenizer takes any text."""

from __future__ import annotations

import pytest
import torch

from sweeptune.models import load_model
from sweeptune.models.tiny import tiny_tokenizer


def test_it_has_under_a_million_parameters(settings):
    model = load_model(settings().model, dtype=torch.float32, device=torch.device("cpu"))
    assert 0 < sum(p.numel() for p in model.parameters()) < 1_000_000
    assert model.config.use_cache is False
    assert model.get_input_embeddings().num_embeddings >= len(tiny_tokenizer())


@pytest.mark.parametrize(
    "text",
    ["hi", " lead", "tail ", "a  b\n\n\tc", "世界", "🙂🧑‍🚀", "\x00\x01\xa0", "e\u0301 é", "don't . , !", "\u2028", ""],
)
def test_every_text_comes_back(text):
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text.encode())


def test_markup_is_one_token():
    tokenizer = tiny_tokenizer()
    assert tokenizer.encode("<|im_start|>a<|im_end|>")[::2] == [257, 256]
    assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id) == (258, 256, 256)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"

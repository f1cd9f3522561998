"""A tokenizer built in code, so that a model without any file can be trained: for tests and for random weights."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|im_end|>", "<|im_start|>")


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """Make a byte-level tokenizer of 258 tokens with the ChatML template: every text round-trips.

    Returns:
        Ids 0 to 255 are the bytes, 256 is ``<|im_end|>`` (end of turn, padding), 257 is ``<|im_start|>``.

    Example:
        >>> tiny_tokenizer().encode("hi")
        [71, 72]
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )

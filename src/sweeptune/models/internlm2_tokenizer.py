"""InternLM2's tokenizer out of its ``tokenizer.model`` alone: id for id what sentencepiece says.

The file is a sentencepiece model: a protobuf message that lists pieces, their scores and kinds. It is read as such,
with a descriptor of the few fields that matter, because the library sentencepiece cannot read it everywhere (0.2.2
stops at a piece that is a NUL) and transformers' LlamaTokenizer reads it wrongly: it prepends a space to every text and
puts the chat tokens behind the end of the embedding.

Sentencepiece's BPE merges, again and again, the neighbours whose joint piece has the highest score. A `tokenizers` BPE
merges by rank in a list, so the list is every way to split a piece in two, the highest score first. Bytes stand in for
characters that no piece has. The six chat tokens take six slots that the file calls ``[UNUSED_TOKEN_141]`` and so on.

One difference is known: for a NUL character this gives its own piece (354), sentencepiece 0.2.3 a byte (3).
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sweeptune.config.errors import ConfigError
from sweeptune.models.fetch import cache_dir, remember

log = logging.getLogger("sweeptune")

SIZE = 92544
FIRST_CHAT_ID = 92538
CHAT_TOKENS = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>")
IMAGE_ID = 92537
"""An unused slot that becomes a token of one's own, such as ``<image>``, without a larger embedding."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As published with the chat models. It writes ``<s>`` itself; the tokenizer never adds one."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
BPE = 2
RECIPE = 1
"""Goes up when the same file would be built into another tokenizer: cached ones are then made anew."""
PROTO = """
name: "sweeptune_pieces.proto" package: "sweeptune" syntax: "proto2"
message_type {
  name: "Model"
  field { name: "pieces" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: "Piece" }
  field { name: "trainer_spec" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: "Trainer" }
  field { name: "normalizer_spec" number: 3 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: "Normalizer" }
}
message_type {
  name: "Piece"
  field { name: "piece" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "score" number: 2 label: LABEL_OPTIONAL type: TYPE_FLOAT }
  field { name: "type" number: 3 label: LABEL_OPTIONAL type: TYPE_INT32 default_value: "1" }
}
message_type {
  name: "Trainer"
  field { name: "model_type" number: 3 label: LABEL_OPTIONAL type: TYPE_INT32 default_value: "1" }
}
message_type {
  name: "Normalizer"
  field { name: "add_dummy_prefix" number: 3 label: LABEL_OPTIONAL type: TYPE_BOOL default_value: "true" }
}
"""
"""The part of sentencepiece's ``sentencepiece_model.proto`` that is read."""
GIVE = "give model.tokenizer=<InternLM2's tokenizer.model>"
CANARY = "The quick brown fox jumps over the lazy dog.<|im_end|>"
CANARY_IDS = [918, 4131, 14018, 38648, 34256, 1053, 410, 15810, 5718, 281, 92542]


def internlm2_tokenizer(
    file: Path, *, image_token: str | None = None, chat_template: str = CHAT_TEMPLATE
) -> PreTrainedTokenizerBase:
    """Build InternLM2's tokenizer, or take the one that was built before from the cache.

    Args:
        file: Its ``tokenizer.model``.
        image_token: The text of a further special token in slot 92537, such as ``<image>``.
        chat_template: Jinja.

    Returns:
        A tokenizer of 92,544 tokens: padding right with ``</s>``, no ``<s>`` in front unless the text has one.

    Raises:
        ConfigError: The file is not there or is not InternLM2's.

    Example:
        >>> internlm2_tokenizer(Path("internlm2-1_8b/tokenizer.model")).encode("The quick brown fox")
        [918, 4131, 14018, 38648]
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); {GIVE}") from error
    name = hashlib.sha256(f"{RECIPE} {image_token} ".encode() + content).hexdigest()[:32]
    made = cache_dir() / "tokenizers" / f"{name}.json"
    if made.is_file():
        try:
            return _wrap({"tokenizer_file": str(made)}, image_token, chat_template)
        except Exception as error:  # tokenizers raises no finer class
            log.warning("%s: is damaged and made anew (%s)", made, error)
    built = _build(_pieces(content, file), image_token)
    remember(made, built.to_str(), "the tokenizer")
    return _wrap({"tokenizer_object": built}, image_token, chat_template)


def _pieces(content: bytes, file: Path) -> list[tuple[str, float, int]]:
    """Text, score and kind of every piece, in the order of their ids."""
    model = _message()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ConfigError(f"{file}: is no sentencepiece model ({error}); {GIVE}") from error
    pieces = [(piece.piece, piece.score, piece.type) for piece in model.pieces]
    slots = [text for text, _, _ in pieces[IMAGE_ID:]]
    expected = [f"[UNUSED_TOKEN_{140 + i}]" for i in range(SIZE - IMAGE_ID)]
    if model.trainer_spec.model_type != BPE or model.normalizer_spec.add_dummy_prefix or slots != expected:
        raise ConfigError(
            f"{file}: is not InternLM2's tokenizer ({len(pieces)} pieces, {SIZE} expected). Other models bring a "
            "tokenizer.json: give its folder or hub id as model.tokenizer="
        )
    return pieces


def _message() -> Any:
    """An empty message of the fields in `PROTO`, in a pool of its own: others may register the whole file."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(PROTO, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("sweeptune.Model"))()


def _build(pieces: list[tuple[str, float, int]], image_token: str | None) -> Tokenizer:
    renamed = dict(enumerate(CHAT_TOKENS, FIRST_CHAT_ID)) | ({IMAGE_ID: image_token} if image_token else {})
    vocab = {renamed.get(i, text): i for i, (text, _, _) in enumerate(pieces)}
    scores = {text: score for text, score, kind in pieces if kind == NORMAL}
    merges = [
        (-score, vocab[text], vocab[text[:at]], vocab[text[at:]], text[:at], text[at:])
        for text, score in scores.items()
        for at in range(1, len(text))
        if text[:at] in scores and text[at:] in scores
    ]
    merges.sort()
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[(left, right) for *_, left, right in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = {text for text, _, kind in pieces if kind in (UNKNOWN, CONTROL)} | set(renamed.values())
    whole = {text for text, _, kind in pieces if kind == USER_DEFINED} & vocab.keys()
    for text in sorted(special | whole, key=vocab.__getitem__):
        token = AddedToken(text, normalized=False, special=text in special)
        tokenizer.add_special_tokens([token]) if text in special else tokenizer.add_tokens([token])
    return tokenizer


def _wrap(made: dict[str, Any], image_token: str | None, chat_template: str) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(
        **made,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        extra_special_tokens=[*CHAT_TOKENS, *([image_token] if image_token else [])],
        padding_side="right",
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def from_folder(folder: Path, *, image_token: str | None = None) -> PreTrainedTokenizerBase:
    """Build the tokenizer of a folder with a ``tokenizer.model``; the folder's chat template, if it has one, wins."""
    template = CHAT_TEMPLATE
    settings, own = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    if own.is_file():
        template = own.read_text(encoding="utf-8")
    elif settings.is_file():
        named = json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
        template = named if isinstance(named, str) else template
    return internlm2_tokenizer(folder / "tokenizer.model", image_token=image_token, chat_template=template)


def misread(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether this is InternLM2's tokenizer and gives other ids than sentencepiece: some tokenizer.json files do.

    Its chat tokens tell it from the tokenizers of other models, many of which are larger.
    """
    named = tokenizer.convert_tokens_to_ids(list(CHAT_TOKENS))
    if any(found in (None, tokenizer.unk_token_id) for found in named):
        return False
    return len(tokenizer) >= SIZE and tokenizer.encode(CANARY, add_special_tokens=False) != CANARY_IDS


def make_portable(tokenizer: PreTrainedTokenizerBase, folder: Path, file: Path | None) -> None:
    """Add to a saved InternLM2 tokenizer what other tools need, so that they read it as it is meant.

    transformers 4 does not know the class that transformers 5 names; llama.cpp takes the scores of the pieces from
    ``tokenizer.model`` and the names of the chat tokens from ``added_tokens_decoder``.

    Args:
        tokenizer: What ``save_pretrained`` wrote; nothing happens unless it is InternLM2's.
        folder: Where it was saved.
        file: Its ``tokenizer.model``, which is copied beside it.
    """
    if tokenizer.convert_tokens_to_ids(CHAT_TOKENS[0]) != FIRST_CHAT_ID or misread(tokenizer):
        return
    settings = folder / "tokenizer_config.json"
    values = json.loads(settings.read_text(encoding="utf-8"))
    names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    values |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(i): {name: getattr(token, name) for name in names}
            for i, token in tokenizer.added_tokens_decoder.items()
            if token.special
        },
    }
    settings.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if file is not None:
        shutil.copyfile(file, folder / "tokenizer.model")

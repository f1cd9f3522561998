"""InternLM2's tokenizer out of tokenizer.model: id for id what sentencepiece says, without sentencepiece."""

# ruff: noqa: RUF001 - the texts are meant to be odd

from __future__ import annotations

import importlib.metadata
import json
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sweeptune.config.errors import ConfigError
from sweeptune.models import internlm2_tokenizer as module
from sweeptune.models import load_model, load_tokenizer
from sweeptune.models.internlm2_tokenizer import SIZE, internlm2_tokenizer, make_portable, misread
from sweeptune.models.tiny import tiny_tokenizer
from tests.data.helpers import shared
from tests.models.internlm2 import published_config, random_weights, write

pytestmark = pytest.mark.slow

CHAT = {
    "<|plugin|>": 92538,
    "<|interpreter|>": 92539,
    "<|action_end|>": 92540,
    "<|action_start|>": 92541,
    "<|im_end|>": 92542,
    "<|im_start|>": 92543,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache, monkeypatch) -> None:
    monkeypatch.setenv("SWEEPTUNE_CACHE", str(cache))


@pytest.fixture(scope="module")
def model_file() -> Path:
    return shared("internlm2/tokenizer.model")


@pytest.fixture(scope="module")
def tokenizer(model_file, cache) -> PreTrainedTokenizerBase:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWEEPTUNE_CACHE", str(cache))
        return internlm2_tokenizer(model_file)


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    found: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return found


def texts(count: int) -> list[str]:
    """Texts of many scripts, spaces and digits, the same at every run."""
    draw = random.Random(3)
    alphabets = [
        "abcdefghij KLMNOP.,!?'\"()-_/",
        "0123456789 +-*=.,%",
        "的一是不了人我在有他这中大来上国—…，。！？《》",
        "あいうえおカキクケコーㇰ",
        "абвгдежз ЁЩ",
        " \t\n\r   ",
        "éüßñçøłžşİı\u0301\u0308",
        "🙂🧑‍🚀👩🏽‍💻🇨🇳\ufe0f",
        "ＥＦＧａｂｃ——……",
        "<|im_end>[UNUSED_TOKEN]{}\\$#@~`^&;",
        "\x01\x7f\u200b\ufeff\u2028𝔘𠀀",
    ]
    made = []
    for _ in range(count):
        parts = [draw.choices(draw.choice(alphabets), k=draw.randint(1, 12)) for _ in range(draw.randint(1, 8))]
        made.append("".join("".join(part) for part in parts))
    return made


@pytest.mark.parametrize("pieces", [False, True], ids=["tokenizer.json", "with tokenizer.model"])
def test_a_larger_tokenizer_of_another_model_is_its_own(tmp_path, pieces):
    alphabet = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary = alphabet | {f"word{i}": len(alphabet) + i for i in range(SIZE)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="word1").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    if pieces:
        (tmp_path / "tokenizer.model").write_bytes(b"of another kind")
    assert len(load_tokenizer(tmp_path)) == len(vocabulary)


def test_every_reference_encoding_is_equal(tokenizer):
    references = json.loads(shared("internlm2/reference_encodings.json").read_text(encoding="utf-8"))
    assert len(references["entries"]) >= 31
    for entry in references["entries"]:
        assert ids(tokenizer, entry["text"]) == entry["ids"], entry["text"]
        assert tokenizer.decode(entry["sp_ids"]) == entry["text"]
        assert tokenizer.convert_ids_to_tokens(entry["sp_ids"])[:1] in (entry["sp_pieces"][:1], [None])


def test_its_size_and_its_special_tokens(tokenizer):
    assert len(tokenizer) == SIZE == 92544
    assert {text: tokenizer.convert_tokens_to_ids(text) for text in CHAT} == CHAT
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    assert special == {"<unk>", "<s>", "</s>", *CHAT}
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert not misread(tokenizer)


def test_nothing_is_added_to_a_text(tokenizer):
    assert tokenizer.encode("hi") == tokenizer("hi").input_ids == ids(tokenizer, "hi")
    assert 1 not in tokenizer.encode("hi")


def test_batches_are_padded_right_with_the_end_of_text(tokenizer):
    batch = tokenizer(["a", "b c d"], padding=True)
    assert batch["input_ids"][0] == [*ids(tokenizer, "a"), 2, 2]
    assert batch["attention_mask"][0] == [1, 0, 0]
    assert set(batch) == {"input_ids", "attention_mask"}


def test_fuzzed_text_comes_back(tokenizer):
    for text in texts(1500):
        assert tokenizer.decode(ids(tokenizer, text)) == text, repr(text)


def test_fuzzed_text_has_the_ids_of_sentencepiece(tokenizer, model_file):
    sentencepiece = pytest.importorskip("sentencepiece")
    if importlib.metadata.version("sentencepiece") == "0.2.2":
        pytest.skip("sentencepiece 0.2.2 cannot read InternLM2's file")
    judge = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    for text in texts(1500):
        assert ids(tokenizer, text) == judge.encode(text), repr(text)


def test_a_conversation_in_the_published_format(tokenizer):
    messages = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == ("<s><|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>assistant\n")
    found = ids(tokenizer, text)
    assert (found[0], found[1], found.count(1), found.count(92542)) == (1, 92543, 1, 2)


def test_sentencepiece_is_not_needed(model_file, monkeypatch, tmp_path):
    monkeypatch.setenv("SWEEPTUNE_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    assert ids(internlm2_tokenizer(model_file), "The quick brown fox") == [918, 4131, 14018, 38648]


def test_what_was_built_is_used_again_and_built_anew_when_damaged(tokenizer, model_file, cache, monkeypatch, tmp_path):
    copy = tmp_path / "elsewhere.model"
    shutil.copyfile(model_file, copy)
    built: list[Any] = []
    real = module._build
    monkeypatch.setattr(module, "_build", lambda *a: built.append(a) or real(*a))
    assert ids(internlm2_tokenizer(copy), "fox") == ids(tokenizer, "fox")
    assert not built
    for made in (cache / "tokenizers").glob("*.json"):
        made.write_text(made.read_text(encoding="utf-8")[:-100], encoding="utf-8")
    assert ids(internlm2_tokenizer(copy), "fox") == ids(tokenizer, "fox")
    assert len(built) == 1
    internlm2_tokenizer(copy)
    assert len(built) == 1


def test_a_cache_that_cannot_be_written_costs_time_only(model_file, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SWEEPTUNE_CACHE", str(tmp_path / "file" / "cache"))
    assert len(internlm2_tokenizer(model_file)) == SIZE


def test_an_image_token_takes_an_unused_slot(tokenizer, model_file):
    with_image = load_tokenizer(model_file.parent, image_token="<image>")
    assert (len(with_image), with_image.convert_tokens_to_ids("<image>")) == (SIZE, 92537)
    assert ids(with_image, "a<image>b") == [*ids(tokenizer, "a"), 92537, *ids(tokenizer, "b")]
    assert with_image.decode([92537], skip_special_tokens=True) == ""
    assert 92537 not in ids(tokenizer, "a<image>b")


# -- where it is found -------------------------------------------------------------------------------------------------


@pytest.fixture
def published(model_file, tmp_path) -> Path:
    """A folder as the hub has it: no tokenizer.json."""
    config = published_config(vocab_size=SIZE, num_hidden_layers=1, hidden_size=64, intermediate_size=64)
    folder = write(tmp_path / "published", config, random_weights(config))
    shutil.copyfile(model_file, folder / "tokenizer.model")
    settings = {
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "chat_template": "{{ 'mine' }}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_published_folder_brings_its_own_with_its_template(published, tokenizer):
    found = load_tokenizer(published)
    assert ids(found, "fox<|im_end|>") == ids(tokenizer, "fox<|im_end|>")
    assert found.chat_template == "{{ 'mine' }}"


@pytest.mark.parametrize("given", ["file", "folder", "folder without config"])
def test_settings_name_another_tokenizer(settings, published, model_file, tokenizer, given):
    place = {"file": model_file, "folder": published, "folder without config": model_file.parent}[given]
    model = replace(settings("model=internlm2_1_8b").model, weights="random", tokenizer=str(place))
    assert ids(load_tokenizer(model), "fox<|im_end|>") == ids(tokenizer, "fox<|im_end|>")


def test_random_weights_without_a_tokenizer_get_the_byte_level_one(settings):
    assert len(load_tokenizer(replace(settings("model=internlm2_1_8b").model, weights="random"))) == 258


def test_a_saved_tokenizer_is_read_by_everyone(tokenizer, published, model_file, tmp_path):
    out = tmp_path / "saved"
    tokenizer.save_pretrained(out)
    make_portable(tokenizer, out, model_file)
    values = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast"  # known to transformers 4 and 5
    assert values["add_prefix_space"] is False
    assert values["added_tokens_decoder"]["92542"]["content"] == "<|im_end|>"
    assert (out / "tokenizer.model").read_bytes() == model_file.read_bytes()
    for model_type in ("llama", "internlm2"):
        (out / "config.json").write_text(json.dumps({"model_type": model_type}))
        for again in (AutoTokenizer.from_pretrained(out), load_tokenizer(out)):
            assert len(again) == SIZE
            for text in ["The quick brown fox<|im_end|>\n", *texts(50)]:
                assert ids(again, text) == ids(tokenizer, text)
            assert again.chat_template == tokenizer.chat_template


def test_a_tokenizer_json_that_reads_the_pieces_wrongly_is_not_used(published, tokenizer):
    """As transformers' LlamaTokenizer converts it: a space in front of every text."""
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    space = {"type": "Prepend", "prepend": "▁"}
    made["normalizer"] = {"type": "Sequence", "normalizers": [space, made["normalizer"]]}
    (published / "tokenizer.json").write_text(json.dumps(made))
    (published / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert misread(AutoTokenizer.from_pretrained(published))
    assert ids(load_tokenizer(published), "fox") == ids(tokenizer, "fox")
    (published / "tokenizer.model").unlink()
    with pytest.raises(ConfigError, match=r"gives other ids than InternLM2's tokenizer .*model\.tokenizer="):
        load_tokenizer(published)


def test_model_and_tokenizer_of_one_folder_fit(published):
    model, found = load_model(published, dtype="fp32", device="cpu"), load_tokenizer(published)
    out = model(**found(["你好 world", "fox"], padding=True, return_tensors="pt"))
    assert out.logits.shape[-1] == len(found)


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"no protobuf at all", b"", b"\x0a\x05\x0a\x03abc"])
def test_a_file_that_is_another_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ConfigError, match=r"tokenizer\.model: is (no sentencepiece model|not InternLM2's tokenizer)"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_is_not_there(settings, tmp_path):
    model = settings().model
    for place in (tmp_path / "nothing", "./nothing", "tokenizer.model"):
        with pytest.raises(ConfigError, match=r"model\.tokenizer=.*: no such file or folder"):
            load_tokenizer(replace(model, tokenizer=str(place)))
    with pytest.raises(ConfigError, match="cannot be read"):
        internlm2_tokenizer(tmp_path / "tokenizer.model")


def test_a_folder_named_as_the_tokenizer_holds_none(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.tokenizer=.*: no tokenizer that transformers can read"):
        load_tokenizer(replace(settings().model, tokenizer=str(tmp_path)))


def test_only_internlm2_has_a_slot_for_an_image(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"image_token=<image>: this tokenizer has no such token"):
        load_tokenizer(settings().model, image_token="<image>")
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(replace(settings().model, tokenizer=str(tmp_path)), image_token="<|im_end|>")


def test_the_message_reads_what_sentencepiece_writes():
    """Fields by number and type, without the real file: one piece each of text, score and kind."""
    message = module._message()
    message.pieces.add(piece="▁世界", score=-1.5, type=4)
    message.trainer_spec.model_type = 2
    message.normalizer_spec.add_dummy_prefix = False
    content = message.SerializeToString()
    assert content.startswith(b"\x0a\x12\x0a\x09" + "▁世界".encode() + b"\x15\x00\x00\xc0\xbf\x18\x04")
    again = module._message()
    again.ParseFromString(content)
    assert (again.pieces[0].piece, again.pieces[0].score, again.pieces[0].type) == ("▁世界", -1.5, 4)
    assert module._message().normalizer_spec.add_dummy_prefix is True

"""Which template a run speaks: the model's own, one of those shipped here, or a file; and the tokens of a document.

The template is put into the tokenizer, so that training, evaluation, chat and export all use the one that was trained.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import ModelConfig, TemplateConfig
from sweeptune.data.cuts import turn_end
from sweeptune.data.render import Renderer, Special
from sweeptune.models import load_tokenizer

FOLDER = Path(__file__).parent / "templates"
NEEDS = {
    "internlm2_chat": ("<|im_start|>", "<|im_end|>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "alpaca": (),
}
"""The markup that each shipped template writes, all of it special tokens."""
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
OWN = "own_chat_template"  # the attribute of a tokenizer that keeps what it came with


def load_run_tokenizer(model: ModelConfig, template: TemplateConfig) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer with the template of a run.

    Raises:
        ConfigError: There is no tokenizer, or it cannot speak the template.

    Example:
        >>> tokenizer = load_run_tokenizer(config.model, config.template)
        >>> tokenizer.apply_chat_template(messages, tokenize=False)
    """
    return apply_template(load_tokenizer(model), template)


def apply_template(tokenizer: PreTrainedTokenizerBase, template: TemplateConfig) -> PreTrainedTokenizerBase:
    """Make a tokenizer's chat template the one of a run; a second time changes nothing.

    Args:
        tokenizer: The model's; it is changed.
        template: The run's.

    Returns:
        The same tokenizer.

    Raises:
        ConfigError: The tokenizer lacks the template's markup, or the template's file cannot be read.

    Example:
        >>> apply_template(tiny_tokenizer(), TemplateConfig(name="chatml", ...)).chat_template[:30]
        '{#- ChatML: <|im_start|>role, '
    """
    own = own_template(tokenizer)
    setattr(tokenizer, OWN, own)
    if template.name == "auto":
        tokenizer.chat_template = own
    elif template.name == "none":
        tokenizer.chat_template = _plain_template(tokenizer, template)
    elif template.name == "jinja":
        tokenizer.chat_template = _read(template)
    else:
        lacking = _lacks(template.name, tokenizer)
        if lacking:
            raise ConfigError(f"template={template.name}: {lacking}; {_would_work(tokenizer)}")
        tokenizer.chat_template = shipped(template.name)
    return tokenizer


def own_template(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The chat template that the tokenizer came with: text, or texts by name; None where it has none."""
    return getattr(tokenizer, OWN) if hasattr(tokenizer, OWN) else tokenizer.chat_template


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens at which an answer ends: end of text, and what ends a turn under the tokenizer's chat template."""
    special = Special(tokenizer)
    texts = [tokenizer.eos_token]
    texts += [turn_end(Renderer(tokenizer, "auto", text), special) for text in _texts(tokenizer.chat_template)]
    return sorted({found for text in texts if text and (found := token_id(tokenizer, text)) is not None})


def shipped(name: str) -> str:
    """The text of a template of ours."""
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def no_template(tokenizer: PreTrainedTokenizerBase, name: str) -> ConfigError:
    """For conversations where the tokenizer has nothing to write them with."""
    return ConfigError(
        f"template={name}: this model's tokenizer has no chat template, and the data holds conversations; "
        f"{_would_work(tokenizer)}; or fine-tune an instruct model, or give a file: template=jinja template.path=..."
    )


def drops(name: str, lost: Sequence[str]) -> ConfigError:
    """For rows whose tools or calls of them would vanish, and the model learn to answer as if there were none."""
    what = " and ".join(lost)
    return ConfigError(
        f"template={name}: this template does not write the {what} of a row, so they would be lost without a word; "
        "train with a template that writes them: template=internlm2_chat where the tokenizer has its tokens, or "
        f"template=jinja template.path=<file>; or take {what} out of the data"
    )


def document_texts(tokenizer: PreTrainedTokenizerBase, template: TemplateConfig) -> tuple[str | None, str | None]:
    """The tokens before and behind a raw document, as text; None for none.

    ``auto`` begins with the begin-of-text token, unless there is none, it ends texts, too, or chat templates write it
    as markup (SmolLM2's is ``<|im_start|>``). It ends with what ends texts: not with what ends a turn, which some
    models name their end-of-text.

    Raises:
        ConfigError: A token that is asked for is none of the tokenizer's.
    """
    own = own_template(tokenizer)
    start, end = template.document_start, template.document_end
    if start == "auto":
        bos = tokenizer.bos_token
        markup = bos is not None and any(bos in text for text in (_texts(own) or [shipped("chatml")]))
        start = None if bos is None or bos == tokenizer.eos_token or markup else bos
    if end == "auto":
        end = tokenizer.eos_token
        if end and end in _turn_ends(tokenizer, own):
            end = next((text for text in ENDS if token_id(tokenizer, text) is not None), end)
    for field, text in (("document_start", start), ("document_end", end)):
        if text and token_id(tokenizer, text) is None:
            raise ConfigError(
                f"template.{field}={text}: is no token of this model's tokenizer; give the text of one, such as "
                f"template.{field}='{tokenizer.eos_token}', or null for none, or auto"
            )
    return start or None, end or None


def token_id(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """The id of a token, by its text; None where the tokenizer has no such token."""
    found = tokenizer.convert_tokens_to_ids(text)
    return found if found is not None and tokenizer.convert_ids_to_tokens(found) == text else None


def _texts(template: Any) -> list[str]:
    return list(template.values()) if isinstance(template, dict) else [template] if template else []


def _turn_ends(tokenizer: PreTrainedTokenizerBase, own: Any) -> list[str]:
    if not own:
        return ["<|im_end|>", "<|eot_id|>"]
    special = Special(tokenizer)
    return [turn_end(Renderer(tokenizer, "auto", text), special) for text in _texts(own)]


def _plain_template(tokenizer: PreTrainedTokenizerBase, template: TemplateConfig) -> str:
    texts = dict(zip(("document_start", "document_end"), document_texts(tokenizer, template), strict=True))
    lines = [f"{{%- set {name} = {json.dumps(text or '', ensure_ascii=False)} -%}}" for name, text in texts.items()]
    return "\n".join([*lines, shipped("none")])


def _read(template: TemplateConfig) -> str:
    try:
        text = Path(str(template.path)).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"template.path={template.path}: cannot be read ({error}); give a jinja file") from error
    if not text.strip():
        raise ConfigError(f"template.path={template.path}: is empty; give a file that holds a jinja chat template")
    return text


def _lacks(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a shipped template needs and the tokenizer does not have, in words; empty where it can speak it."""
    texts = Special(tokenizer).texts
    missing = [text for text in NEEDS[name] if text not in texts]
    if missing:
        return f"the model's tokenizer has no token {' and no '.join(missing)}"
    if name == "internlm2_chat" and (tokenizer.bos_token is None or tokenizer.bos_token in NEEDS[name]):
        return f"it begins with a begin-of-text token, and the tokenizer's is {tokenizer.bos_token or 'none'}"
    if name == "alpaca" and tokenizer.eos_token not in texts:
        return "answers end with the end-of-text token, and the tokenizer has none"
    return ""


def _would_work(tokenizer: PreTrainedTokenizerBase) -> str:
    works = [name for name in NEEDS if not _lacks(name, tokenizer)]
    names = [*(["auto"] if own_template(tokenizer) else []), *works, "none"]
    return f"with this tokenizer work template={', '.join(names)}"

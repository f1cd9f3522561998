"""Adapters added into their base: a plain model; and what that costs QLoRA, whose base is not what it is merged into.

A QLoRA run is judged with its NF4 base and its adapter side by side. Who uses it merges the two, into bf16, and often
quantises the sum again to serve it. Each of these is another model with another loss.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, PreTrainedModel

from sweeptune.kernels.fuse import unfuse
from sweeptune.methods import METHODS
from sweeptune.methods.pissa import ADAPTER
from sweeptune.methods.quantized import keep_trainable_on_cpu
from sweeptune.models.load import quantize
from sweeptune.models.tables import quantize_head
from sweeptune.tracking.record import MERGED
from sweeptune.training.evaluate import summarize
from sweeptune.training.oom import any_rank, brief, is_out_of_memory, release_memory
from sweeptune.training.restore import dequantize, dequantized
from sweeptune.training.scoring import score
from sweeptune.training.session import Session

log = logging.getLogger("sweeptune")
M = TypeVar("M", bound=torch.nn.Module)


def merged(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Turn a trained model into a plain one; ``model`` is used up.

    Never into a quantised base in place: that would quantise again, and give another model than the trained one.

    Args:
        model: A trained model, with or without adapters, on a quantised base or a plain one.
        dtype: Storage type of the result; adding is done in fp32.
    """
    unfuse(model)
    if not isinstance(model, PeftModel):
        return store(model, dtype)
    if getattr(model.get_base_model(), "hf_quantizer", None) is None:
        whole: Any = dequantize(model, torch.float32).float()
        plain: PreTrainedModel = whole.merge_and_unload()
        return store(plain, dtype)
    # PEFT's wrappers of quantised layers would quantise the sum again, so it is made here, a layer at a time.
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                setattr(parent, name, store(_with_adapter(child), dtype))
    base: Any = store(dequantize(model.get_base_model(), dtype), dtype)  # layers without an adapter, and all else
    config = type(base.config).from_dict({k: v for k, v in base.config.to_dict().items() if k != "quantization_config"})
    with torch.device("meta"):
        attention = base.config._attn_implementation
        fresh = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    fresh.load_state_dict(base.state_dict(), assign=True)
    fresh.tie_weights()
    for name, buffer in base.named_buffers():  # rotary frequencies are in no state dict
        parent, _, leaf = name.rpartition(".")
        fresh.get_submodule(parent).register_buffer(leaf, buffer, persistent=False)
    return fresh


def _with_adapter(layer: LoraLayer) -> torch.nn.Linear:
    """The plain fp32 layer that a quantised one and its adapter stand for together."""
    plain = dequantized(layer.get_base_layer(), torch.float32)
    layer.lora_A.float()
    layer.lora_B.float()
    plain.weight.data += layer.get_delta_weight(ADAPTER).detach()
    return plain


def store(model: M, dtype: torch.dtype) -> M:
    """Change how weights are stored. Buffers stay as they are: rotary frequencies in bf16 would be other ones."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model


def judge_merged(session: Session) -> dict[str, Any]:
    """The eval loss of a trained QLoRA model as it is, merged into bf16, and quantised to NF4 again after that.

    Both are computed as the run computes: on a CPU in fp32, with weights that were rounded to bf16. The model of the
    session is used up. Every rank must call this.

    Returns:
        The losses of `MERGED` in nats a token, None where one could not be measured (a bf16 model takes four times the
        memory of NF4), and then ``merge_reason``.
    """
    last = session.progress.last_eval or {}
    losses: dict[str, Any] = dict.fromkeys(MERGED) | {"as_trained": last.get("loss")}
    try:
        with session.meter.interlude("merge", release=True):
            plain = on_all_ranks(session, partial(_merged_to_bf16, session))
            losses["merged_bf16"] = _loss(session, plain, "evaluating it merged into bf16")
            again = on_all_ranks(session, partial(_quantized_again, session, plain))
            del plain
            release_memory(session.device)
            losses["merged_requantized"] = _loss(session, again, "evaluating it quantised again")
    except (Exception, KeyboardInterrupt) as error:  # the run is complete, whatever happens here
        short = brief(error) if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
        losses["merge_reason"] = short
        log.warning("the merged model could not be judged: %s", short)
        log.debug("traceback", exc_info=error)
    return losses


def _merged_to_bf16(session: Session) -> PreTrainedModel:
    return store(merged(session.model, torch.bfloat16), session.placement.weights)


def _quantized_again(session: Session, plain: PreTrainedModel) -> PreTrainedModel:
    placement, quantization = session.placement, METHODS[session.config.method.name].quantization
    assert quantization is not None, "only a method with a quantised base is judged merged"
    again = quantize(plain, quantization(placement.compute), placement.weights, placement.device)
    if session.config.model.head == "nf4":
        quantize_head(again, quantization(placement.compute), placement.device)
    keep_trainable_on_cpu(again)  # computes as the trained one did
    return again


def _loss(session: Session, model: PreTrainedModel, description: str) -> float:
    examples = score(session, session.eval_rows, description, model=model, phase="merge")
    return float(summarize(examples)["loss"])


def on_all_ranks(session: Session, build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Make something on every rank; where it fails on one, raise on all, so that none waits for it for ever."""
    failure: BaseException | None = None
    try:
        built = build()
    except Exception as error:
        failure = error
    if any_rank(failure is not None, session.device):
        raise failure or RuntimeError("another rank could not make the model")
    return built

"""A model's two tables, a tenth of a 7B model's weights: an embedding in host memory, a head in 4 bits."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any, Self

import bitsandbytes as bnb
import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from sweeptune.config.errors import ConfigError
from sweeptune.kernels.host_rows import rows

log = logging.getLogger("sweeptune")

PORTABLE_AND_MAPPED = 3
"""Flags of cudaHostRegister: for every context, and readable from the device."""


class HostEmbedding(torch.nn.Embedding):
    """A frozen embedding whose table stays in host memory, whatever the model is moved to."""

    _readable_at: int | None = None
    """Address at which the device may read the table."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Rows [..., d] on the device of the ids [...]."""
        pinned = input.device != self.weight.device and self.weight.data_ptr() == self._readable_at
        return rows(self.weight, input, pinned=pinned)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        super()._apply(lambda tensor: fn(tensor).cpu(), recurse)  # type: ignore[no-untyped-call]
        return self

    def pin(self) -> None:
        """Let CUDA devices read the table; where the system does not allow it, lookups wait for the device.

        The pages are registered, not allocated by CUDA, so that they count in the process's resident set.
        """
        table, cuda = self.weight.detach(), torch.cuda.cudart()  # type: ignore[no-untyped-call]
        status = int(cuda.cudaHostRegister(table.data_ptr(), table.nbytes, PORTABLE_AND_MAPPED))
        if status != 0:
            log.warning("model.embedding=cpu: pages cannot be locked (CUDA error %d), so lookups are slower", status)
            return
        self._readable_at = table.data_ptr()
        weakref.finalize(self, _unpin, table).atexit = False


def _unpin(table: torch.Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(table.data_ptr())  # type: ignore[no-untyped-call]


def keep_embedding_on_host(model: PreTrainedModel, device: torch.device) -> None:
    """Move the input embedding to host memory, frozen.

    Args:
        model: Its embedding is replaced by one with the same names and shapes.
        device: Where all else is.

    Raises:
        ConfigError: The embedding is the head, too, or does more than look up.
    """
    check_untied(model.config, "model.embedding=cpu", "model.embedding=device")
    old: Any = model.get_input_embeddings()
    if type(old) is not torch.nn.Embedding:
        raise ConfigError(
            f"model.embedding=cpu: this model's embedding is a {type(old).__name__}, which does more than look up. "
            "Use model.embedding=device"
        )
    table = old.weight.detach().cpu().contiguous()
    made = HostEmbedding(table.shape[0], table.shape[1], padding_idx=old.padding_idx, _weight=table, _freeze=True)
    made.train(old.training)
    model.set_input_embeddings(made)
    if device.type == "cuda":
        made.pin()


def quantize_head(model: PreTrainedModel, quantization: BitsAndBytesConfig, device: torch.device) -> None:
    """Store the head as the other linear layers are stored, which transformers' quantiser leaves out.

    Raises:
        ConfigError: The head is the embedding, too.
    """
    check_untied(model.config, "model.head=nf4", "model.head=plain")
    head: Any = model.get_output_embeddings()
    kind = {
        "compress_statistics": quantization.bnb_4bit_use_double_quant,
        "quant_type": quantization.bnb_4bit_quant_type,
    }
    made: Any = bnb.nn.Linear4bit(
        head.in_features, head.out_features, False, quantization.bnb_4bit_compute_dtype, **kind, device="meta"
    )
    made.weight = bnb.nn.Params4bit(head.weight.detach(), requires_grad=False, **kind, module=made).to(device)
    made.bias = head.bias
    made.train(head.training)
    model.set_output_embeddings(made)


def check_untied(config: Any, seen: str, instead: str) -> None:
    """See that embedding and head are two tables.

    Raises:
        ConfigError: They are one.
    """
    if config.get_text_config().tie_word_embeddings:
        raise ConfigError(f"{seen}: this model's embedding and head are one table. Use {instead}")

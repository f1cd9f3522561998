"""An embedding in host memory and a head in 4 bits: the same rows and names, refused where they cannot be."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec

import bitsandbytes as bnb
import pytest
import torch

from sweeptune.config.compose import compose
from sweeptune.config.errors import ConfigError
from sweeptune.config.rules import validate
from sweeptune.kernels.host_rows import rows
from sweeptune.methods.quantized import nf4
from sweeptune.models import load_model
from sweeptune.models.tables import HostEmbedding

UNTIED = ["model=tiny", "hardware=cpu", "method=qlora", "model.architecture.tie_word_embeddings=false"]


def load(*overrides: str, quantized: bool = True):
    config = compose([*UNTIED, *overrides])
    quantization = nf4(torch.float32) if quantized else None
    return load_model(config.model, dtype=torch.float32, device="cpu", quantization=quantization)


def test_the_embedding_keeps_its_names_its_rows_and_its_place() -> None:
    plain, hosted = load(), load("model.embedding=cpu")
    assert isinstance(hosted.get_input_embeddings(), HostEmbedding)
    names = [[(name, tensor.shape) for name, tensor in model.state_dict().items()] for model in (plain, hosted)]
    assert names[0] == names[1]
    ids = torch.arange(40).view(2, 20)
    assert torch.equal(hosted(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert not hosted.get_input_embeddings().weight.requires_grad


def test_an_embedding_on_the_host_is_cast_but_not_moved() -> None:
    embedding = load("model.embedding=cpu").get_input_embeddings()
    seen = []

    def to_device(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return tensor.to(torch.bfloat16)

    embedding._apply(to_device)
    assert seen and (embedding.weight.dtype, embedding.weight.device.type) == (torch.bfloat16, "cpu")


@pytest.mark.skipif(
    not torch.cuda.is_available() and (os.environ.get("TRITON_INTERPRET") != "1" or find_spec("triton") is None),
    reason="needs a GPU or TRITON_INTERPRET=1",
)
@pytest.mark.parametrize("width", [64, 1024, 1500])
def test_the_kernel_fetches_the_rows(width: int) -> None:
    from sweeptune.kernels.host_rows_triton import triton_rows

    table = torch.randn(50, width).bfloat16()
    ids = torch.tensor([[3, 49, 0], [7, 7, 12]])
    if torch.cuda.is_available():
        table, ids = table.pin_memory(), ids.cuda()
    assert torch.equal(triton_rows(table, ids).cpu(), torch.nn.functional.embedding(ids.cpu(), table))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="host and device are two places on a GPU alone")
@pytest.mark.parametrize("pinned", [True, False])
def test_rows_come_to_the_ids(pinned: bool) -> None:
    table, ids = torch.randn(50, 64), torch.tensor([[3, 49], [0, 7]], device="cuda")
    table = table.pin_memory() if pinned else table
    found = rows(table, ids, pinned=pinned)
    assert found.is_cuda and torch.equal(found.cpu(), table[ids.cpu()])


def test_a_quantised_head_is_close_and_small() -> None:
    plain, packed = load(), load("model.head=nf4")
    head = packed.get_output_embeddings()
    assert isinstance(head, bnb.nn.Linear4bit) and head.weight.nbytes == plain.lm_head.weight.numel() // 2
    assert not isinstance(plain.get_output_embeddings(), bnb.nn.Linear4bit)
    restored = bnb.functional.dequantize_4bit(head.weight.data, head.weight.quant_state)
    error = (restored - plain.lm_head.weight).norm() / plain.lm_head.weight.norm()
    assert 0.01 < error < 0.15, "NF4 of a normal distribution"
    ids = torch.arange(40).view(2, 20)
    assert not torch.equal(packed(input_ids=ids).logits, plain(input_ids=ids).logits)


@pytest.mark.parametrize("override", ["model.embedding=cpu", "model.head=nf4"])
def test_one_table_cannot_be_two(override: str) -> None:
    tied = ["model=tiny", "hardware=cpu", "method=qlora", override]
    assert any("one table" in problem and override in problem for problem in validate(compose(tied)))
    model = replace(compose(tied).model)
    with pytest.raises(ConfigError, match="one table"):
        load_model(model, dtype=torch.float32, device="cpu", quantization=nf4(torch.float32))


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["method=full", "model.embedding=cpu"], "method=full"),
        (["method=lora", "model.head=nf4"], "method=lora"),
    ],
)
def test_other_methods_are_refused(overrides: list[str], named: str) -> None:
    problems = validate(compose([*UNTIED, *overrides]))
    assert any(named in problem and overrides[1] in problem for problem in problems)
    assert validate(compose([*UNTIED, "model.embedding=cpu", "model.head=nf4"])) == []


def test_a_base_without_4_bits_has_no_head_in_4_bits() -> None:
    with pytest.raises(ConfigError, match="method=qlora"):
        load("model.head=nf4", quantized=False)

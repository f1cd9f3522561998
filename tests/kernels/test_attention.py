"""Each back-end shows the model the same samples apart; the reference is each sample in a batch of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from sweeptune.config.errors import ConfigError
from sweeptune.data import collate_packs
from sweeptune.data.collate import Batch, collate
from sweeptune.data.tokenize import Row
from sweeptune.kernels import attention, interfaces
from sweeptune.kernels.attention import backend_of, heads_of, may_see, model_inputs, prepare, resolve
from sweeptune.kernels.fuse import install
from tests.data.helpers import rows_of

CPU = torch.device("cpu")
GPU = torch.device("cuda")
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
LLAMA = {"model_type": "llama"}
GEMMA = {"model_type": "gemma3_text", "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
MISTRAL = {"model_type": "mistral", "sliding_window": 4}
QWEN = {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
MODELS = [LLAMA, GEMMA, MISTRAL, QWEN]
PACKS = [tuple(rows_of(7, 11, 5)), tuple(rows_of(9, 6))]


def names(values: dict[str, Any]) -> str:
    return str(values["model_type"])


def varlen_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What torch.nn.attention.varlen.varlen_attn computes, sample by sample: [n, heads, d]."""
    assert cu_seq_q.dtype == torch.int32 and max_q == int(cu_seq_q.diff().max())
    assert window_size[1] == 0, "causal"
    found = []
    for begin, end in zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], strict=False):
        q, k, v = (tensor[begin:end].transpose(0, 1) for tensor in (query, key, value))
        order = torch.arange(end - begin)
        distance = order[:, None] - order[None, :]
        seen = (distance >= 0) & ((distance <= window_size[0]) | (window_size[0] < 0))
        found.append(F.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=enable_gqa).transpose(0, 1))
    return torch.cat(found)


@pytest.fixture
def _varlen_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "varlen_kernel", lambda: varlen_reference)


def build(values: dict[str, Any], backend: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(**(SHAPE | values))
    implementation = attention.IMPLEMENTATIONS[backend]
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=implementation)


def logits(model: Any, batch: Batch) -> torch.Tensor:
    """[real tokens, vocabulary], row by row, whatever the back-end makes of the batch's shape."""
    ready = prepare(batch, model.config)
    found = model(**ready.inputs).logits
    if ready.inputs["input_ids"].shape[0] == 1 and len(batch.lengths) > 1:
        return found[0]
    return torch.cat([row[: sum(lengths)] for row, lengths in zip(found, batch.lengths, strict=True)])


def alone(values: dict[str, Any], packs: list[tuple[Row, ...]]) -> torch.Tensor:
    """The definition: every sample by itself, without any mask, by the plainest attention."""
    model = build(values, "eager")
    found = [model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0] for p in packs for row in p]
    return torch.cat(found)


@pytest.mark.usefixtures("_varlen_on_cpu")
@pytest.mark.parametrize("backend", ["sdpa", "eager", "varlen"])
@pytest.mark.parametrize("values", MODELS, ids=names)
@pytest.mark.parametrize("packs", [PACKS, PACKS[:1], [(row,) for row in PACKS[0]]], ids=["packed", "one", "padded"])
def test_samples_in_a_row_are_as_if_alone(values, backend, packs):
    with torch.no_grad():
        found = logits(build(values, backend), collate_packs(packs, 0, CPU))
        torch.testing.assert_close(found, alone(values, packs), atol=2e-5, rtol=0)


@pytest.mark.usefixtures("_varlen_on_cpu")
@pytest.mark.parametrize("backend", ["sdpa", "eager", "varlen"])
def test_it_also_holds_in_training_with_recomputed_activations_under_autocast(backend):
    batch = collate_packs(PACKS, 0, CPU)
    model = build(LLAMA, backend).train()
    install(model, "plain", CPU, torch.bfloat16, True)
    with torch.autocast("cpu", torch.bfloat16):
        found = logits(model, batch)
    found.float().square().sum().backward()
    torch.testing.assert_close(found.float(), alone(LLAMA, PACKS), atol=0.05, rtol=0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("values", MODELS, ids=names)
def test_flex_sees_what_the_plain_mask_says(values):
    """Its rule alone: on a CPU flex attention has no backward pass, and compiling it takes longer than the test."""
    batch = collate_packs(PACKS, 0, CPU)
    config = build(values, "flex").config
    inputs = model_inputs(batch, config)
    assert inputs["input_ids"].shape == (2, 128) and inputs["position_ids"].shape == (2, 128)
    masks = inputs["attention_mask"] if isinstance(inputs["attention_mask"], dict) else {"": inputs["attention_mask"]}
    windows = {"full_attention": None, "sliding_attention": 4, "": values.get("sliding_window")}
    assert batch.segments is not None
    segments = F.pad(batch.segments, (0, 128 - 23), value=-1)
    of, at = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    for kind, mask in masks.items():
        for row in range(2):
            seen = mask.mask_mod(torch.tensor(row), torch.tensor(0), of, at)
            assert torch.equal(seen, may_see(segments, windows[kind])[row, 0]), kind


def test_flex_computes_the_same(monkeypatch: pytest.MonkeyPatch):
    from torch.nn.attention.flex_attention import flex_attention

    def plain(query, key, value, training=False, **kwargs):
        return flex_attention(query, key, value, **kwargs)

    monkeypatch.setattr("transformers.integrations.flex_attention.compile_friendly_flex_attention", plain)
    values = LLAMA | {"head_dim": 16}
    with torch.no_grad():
        for packs in (PACKS, [(row,) for row in PACKS[0]]):
            found = logits(build(values, "flex"), collate_packs(packs, 0, CPU))
            torch.testing.assert_close(found, alone(values, packs), atol=2e-5, rtol=0)


def test_padded_rows_reach_the_model_as_they_always_did():
    batch = collate(rows_of(4, 7), 0, CPU)
    inputs = model_inputs(batch, build(LLAMA, "sdpa").config)
    assert inputs.keys() == {"input_ids", "attention_mask", "use_cache"} and inputs["use_cache"] is False
    assert inputs["attention_mask"] is batch.attention_mask


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_packed_rows_come_without_a_two_dimensional_mask(backend):
    batch = collate_packs(PACKS, 0, CPU)
    inputs = model_inputs(batch, build(LLAMA, backend).config)
    assert inputs["attention_mask"].shape == (2, 1, 23, 23)
    assert inputs["attention_mask"].dtype == (torch.bool if backend == "sdpa" else torch.float32)
    assert inputs["position_ids"] is batch.position_ids and inputs["use_cache"] is False


def test_varlen_takes_all_samples_behind_each_other_and_no_padding():
    ready = prepare(collate_packs(PACKS, 0, CPU), build(LLAMA, "varlen").config)
    inputs = ready.inputs
    assert inputs["input_ids"].shape == inputs["position_ids"].shape == ready.labels.shape == (1, 38)
    assert inputs["cu_seq_lens_q"].tolist() == [0, 7, 18, 23, 32, 38]
    assert inputs["max_length_q"] == 11 and inputs["attention_mask"].numel() == 0
    assert ready.place is not None and ready.place.tolist() == [*range(23), *range(23, 38)]
    assert inputs["position_ids"][0].tolist() == [*range(7), *range(11), *range(5), *range(9), *range(6)]


@pytest.mark.usefixtures("_varlen_on_cpu")
def test_a_model_with_varlen_still_talks():
    """Generation brings a cache and no boundaries."""
    ids = torch.tensor([[5, 6, 7, 8]])
    words = [
        build(LLAMA, name).eval().generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        for name in ("sdpa", "varlen")
    ]
    assert torch.equal(*words)


def with_window(query, key, window_size=(-1, -1)) -> None: ...


def with_groups(query, key, window_size=(-1, -1), enable_gqa=False) -> None: ...


def with_flag(query, key, is_causal=False) -> None: ...


@pytest.mark.parametrize(
    ("kernel", "window", "expected"),
    [
        (with_window, None, {"window_size": (-1, 0)}),
        (with_window, 4, {"window_size": (3, 0)}),
        (with_groups, None, {"window_size": (-1, 0), "enable_gqa": True}),
        (with_flag, None, {"is_causal": True}),
    ],
)
def test_how_each_torch_is_asked_to_be_causal(kernel, window, expected):
    assert interfaces.varlen_options(kernel, window, grouped=True) == expected


def test_rows_of_one_length_are_attended_to_by_views_alone():
    def kinds(node: Any) -> set[str]:
        return {type(node).__name__} | {kind for parent, _ in node.next_functions if parent for kind in kinds(parent)}

    q, k, v = (torch.randn(1, 24, heads, 16).transpose(1, 2).requires_grad_() for heads in (4, 2, 2))
    found = interfaces._rows(q, k, v, 3, None)
    alone = [interfaces._rows(*(t[:, :, i : i + 8] for t in (q, k, v)), 1, None) for i in (0, 8, 16)]
    torch.testing.assert_close(found, torch.cat(alone, 1))
    views = {"ViewBackward0", "TransposeBackward0", "SqueezeBackward1", "AccumulateGrad"}
    others = kinds(found.grad_fn) - views
    assert len(others) == 1 and "ScaledDotProduct" in others.pop(), "a select's gradient is zeros and a copy into them"


def test_a_window_that_the_kernel_cannot_do_is_an_error():
    with pytest.raises(ConfigError, match=r"knows no sliding window; use model\.attention=sdpa"):
        interfaces.varlen_options(with_flag, 4, grouped=False)


def test_the_kernel_of_this_torch_can_be_asked():
    kernel = interfaces.varlen_kernel()
    assert kernel is not None and interfaces.varlen_options(kernel, None, grouped=True)


@pytest.mark.usefixtures("_varlen_on_cpu")
@pytest.mark.parametrize("wanted", [{"dropout": 0.1}, {"softcap": 50.0}, {"s_aux": torch.zeros(2)}])
def test_what_varlen_cannot_do_is_an_error(wanted):
    tensors = [torch.zeros(1, 2, 4, 8)] * 3
    bounds = {"cu_seq_lens_q": torch.tensor([0, 4], dtype=torch.int32), "max_length_q": 4}
    with pytest.raises(ConfigError, match=f"has {next(iter(wanted))}; use model.attention=eager"):
        interfaces.varlen_forward(torch.nn.Module(), *tensors, None, **bounds, **wanted)


@pytest.mark.parametrize(
    ("values", "device", "dtype", "chosen"),
    [
        (None, CPU, torch.float32, "sdpa"),
        (LLAMA, CPU, torch.bfloat16, "sdpa"),
        (LLAMA, GPU, torch.float32, "sdpa"),
        (None, GPU, torch.bfloat16, "varlen"),
        (LLAMA, GPU, torch.bfloat16, "varlen"),
        (QWEN, GPU, torch.float16, "varlen"),
        (LLAMA | {"layer_types": ["full_attention", "chunked_attention"]}, GPU, torch.bfloat16, "sdpa"),
        ({"model_type": "gemma2", "attn_logit_softcapping": 50.0}, GPU, torch.bfloat16, "sdpa"),
    ],
)
def test_auto_takes_the_fastest_that_is_present_and_correct(values, device, dtype, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    shape = AutoConfig.for_model(**(SHAPE | values)) if values else None
    assert resolve("auto", shape, device, dtype).name == chosen


def test_auto_on_an_old_gpu_or_torch_is_sdpa(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    found = resolve("auto", None, GPU, torch.float16)
    assert found.name == "sdpa" and "capability 8.0" in found.reason
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(attention, "varlen_kernel", lambda: None)
    assert "this torch has no" in resolve("auto", None, GPU, torch.float16).reason


@pytest.mark.parametrize(
    ("name", "device", "dtype", "why"),
    [
        ("varlen", CPU, torch.bfloat16, "needs a CUDA GPU"),
        ("varlen", GPU, torch.float32, "bf16 or fp16 only"),
        ("flex", CPU, torch.float32, "no backward pass on a CPU"),
        ("flash_attention_4", CPU, torch.bfloat16, "flash-attn-4 is not installed"),
    ],
)
def test_a_back_end_that_cannot_train_here_is_refused(name, device, dtype, why):
    with pytest.raises(ConfigError, match=rf"model\.attention={name}: .*{why}.*use model\.attention=auto"):
        resolve(name, None, device, dtype)


def test_flash_attention_is_told_to_be_untested(monkeypatch):
    monkeypatch.setattr(attention, "flash_installed", lambda name: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    found = resolve("flash_attention_3", None, GPU, torch.bfloat16)
    assert found.implementation == "flash_attention_3" and "nobody has tested" in found.reason


def test_layers_in_which_samples_cannot_be_kept_apart_are_refused():
    config = AutoConfig.for_model("llama", **SHAPE)
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ConfigError, match=r"layers of kind linear_attention.*use data\.packing=none"):
        model_inputs(collate_packs(PACKS, 0, CPU), config)


def test_the_name_of_a_loaded_back_end():
    assert [backend_of(build(LLAMA, name).config) for name in ("sdpa", "eager", "flex", "varlen")] == [
        "sdpa",
        "eager",
        "flex",
        "varlen",
    ]


def test_heads_are_known_of_a_model_that_counts_no_key_heads():
    assert heads_of(GPT2Config(n_embd=96, n_head=4)) == (4, 4, 24)
    assert heads_of(LlamaConfig(hidden_size=96, num_attention_heads=6, num_key_value_heads=2)) == (6, 2, 16)
    assert heads_of(Qwen3Config(num_attention_heads=4, num_key_value_heads=2, head_dim=64)) == (4, 2, 64)

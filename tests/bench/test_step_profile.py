"""bench/step_floor.py against the products that the fused code makes; bench/step_profile.py's tables and trial."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import step_floor  # noqa: E402
import step_profile  # noqa: E402
from step_floor import Product, Shape  # noqa: E402

from sweeptune.config.check import check  # noqa: E402
from sweeptune.kernels.fuse import fuse  # noqa: E402
from tests.kernels.helpers import batch, build, gradients  # noqa: E402

SHAPE = Shape(
    hidden=8, inner=24, layers=2, heads=4, key_heads=2, width=2, vocabulary=50, tokens=100, loss_tokens=90, tied=False
)


class Recorder(TorchDispatchMode):
    """Counts matrix products [m, k] x [k, n], those that are added to something apart."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[int, int, int, bool]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_"):
            a, b = args[:2] if name == "mm" else args[1:3]
            self.found[a.shape[0], b.shape[1], a.shape[1], name != "mm"] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("method", "rank"), [("full", 0), ("lora", 80), ("lora", 70), ("qlora", 80)])
def test_the_products_are_those_that_a_fused_step_makes(method, rank):
    changed: dict[str, Any] = {"rank": rank, "alpha": 160.0} if rank else {}
    model, found = build("llama", method, **changed), batch("even")
    fuse(model, torch.float32)
    recorder = Recorder()
    with recorder:
        gradients(model, found)
    shape = step_floor.shape_of(model.config, found.tokens, found.loss_tokens, rank, nf4=method == "qlora")
    expected: Counter[tuple[int, int, int, bool]] = Counter()
    for product, times in step_floor.products(shape).items():
        expected[product.m, product.n, product.k, product.into] += round(times)
    made: Counter[tuple[int, int, int, bool]] = Counter()
    for (m, n, k, into), count in recorder.found.items():  # gradients of B leave out what fills the rank up
        made[m, 80 if n == 70 else n, k, into] += count
    assert made == expected


def test_products_of_full_fine_tuning_are_six_flops_a_weight_and_token() -> None:
    total = sum(times * product.flops for product, times in step_floor.products(SHAPE).items())
    assert total == pytest.approx(6 * SHAPE.block_weights * 100 + 6 * 50 * 8 * 90)


def test_small_ranks_of_gate_up_and_down_are_part_of_swiglu() -> None:
    late, alone = (step_floor.products(Shape(**{**vars(SHAPE), "rank": rank})) for rank in (64, 80))
    assert Product(100, 24, 64, "nt") not in late and Product(100, 24, 80, "nt") in alone
    assert Product(100, 24, 64, "nn") not in late and Product(100, 24, 80, "nn") in alone


def test_the_least_bytes_by_hand() -> None:
    trained = 2 * (SHAPE.block_weights + 2 * 50 * 8)
    moved = step_floor.least_bytes(SHAPE, trained, 2 * trained)
    row = 2 * 100 * 8
    assert moved.norms == 2 * 14 * row + 5 * row and moved.residual == 2 * row
    assert moved.swiglu == 2 * 8 * 2 * 100 * 24 and moved.rotary == 2 * 4 * 2 * 100 * 6 * 2
    assert moved.optimiser == 8 * trained, "16 bytes a weight"
    assert moved.loss == 4 * 90 * 50 + 4 * 90 * 8 and moved.dequantise == 0
    assert moved.embedding == 3 * row + 2 * 50 * 8
    assert moved.elementwise == sum(vars(moved).values()) - moved.optimiser
    frozen = step_floor.least_bytes(Shape(**{**vars(SHAPE), "rank": 8, "nf4": True}), 10, 20)
    assert frozen.embedding == 2 * row and frozen.optimiser == 80
    assert frozen.dequantise == 2 * SHAPE.block_weights * (0.5 + 1 / 64 + 2)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_256x128_64x4_2x1_v_bz_coopB_TNT", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_cublas", "products"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_bf16_64x64>", "products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26", "attention"),
        ("void cudnn::fusion::compute_dot_do_o_specialized<true, __nv_bfloat16>", "attention"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel", "attention"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimiser"),
        ("_rms_norm_backward", "elementwise"),
        ("_nf4", "elementwise"),
        ("void at::native::elementwise_kernel<AddFunctor>", "elementwise"),
        ("Memcpy DtoD (Device -> Device)", "elementwise"),
    ],
)
def test_kernels_are_classed_by_their_names(name, kind):
    assert step_floor.kind_of(name) == kind


def test_the_table_sums_up() -> None:
    floor = {"products": 100.0, "attention": 10.0, "elementwise": 20.0, "optimiser": 10.0}
    own = {"attention": 12.0, "optimiser": 15.0, "products": 110.0, "elementwise": 40.0}
    rows = [
        [cell.strip() for cell in each.strip("|").split("|")]
        for each in step_profile.floor_table(floor, own, 200.0, 16000)
    ]
    assert rows[2] == ["products", "100.00", "110.00", "+10.00"]
    assert rows[-3] == ["gaps: no kernel runs", "0.00", "23.00", "+23.00"]
    assert rows[-2] == ["sum", "140.00", "200.00", "+60.00"]
    assert rows[-1] == ["tokens/s", "114,286", "80,000", "70.0% of the floor's"]


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "lora_fp8"])
def test_settings_exist_and_given_ones_replace_them(tmp_path, monkeypatch, method):
    monkeypatch.setattr("sweeptune.config.rules.gpu_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    data = tmp_path / "words.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    options = step_profile.arguments().parse_args(["--method", method])
    assert check(step_profile.overrides(options, data), multirun=False) == []
    own = step_profile.arguments().parse_args(["--method", method, "data=jsonl", f"data.path={data}", "seed=3"])
    found = step_profile.overrides(own, tmp_path / "other.jsonl")
    assert f"data.path={data}" in found and "seed=3" in found
    assert not any(each.startswith(("template", "data.format")) for each in found)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "qlora"])
def test_a_trial_on_a_cpu(method):
    command = [sys.executable, str(ROOT / "bench" / "step_profile.py"), "--tiny", "--method", method]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-9:]
    assert last[0].startswith("|  | floor, ms |") and last[-1].startswith("| tokens/s |")
    assert f"{method}, 4 rows, 256 tokens" in done.stdout


@pytest.mark.slow
def test_fp8_has_kernels_and_no_floor_of_bf16() -> None:
    command = [sys.executable, str(ROOT / "bench" / "step_profile.py"), "--tiny", "--method", "lora_fp8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("one step: ") and done.stdout.splitlines()[-1].startswith("no floor: ")

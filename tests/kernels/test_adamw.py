"""AdamW with stochastic rounding: unbiased, keeps small updates, and the kernel is the plain step."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from sweeptune.kernels.adamw import Settings, adamw_, keys_of, plain_adamw_, random_bits, round_by_chance

CPU = torch.device("cpu")


def settings(step: int = 1, lr: float = 1e-3, decay: float = 0.01, number: int = 0) -> Settings:
    return Settings(lr, 0.9, 0.999, 1e-8, decay, step, keys_of(0, step, number))


def test_the_mean_of_many_roundings_is_the_value() -> None:
    values = torch.tensor([1.002, -1.002, 1 + 2**-7 + 1e-5, 3e-20, -123.456, 0.0, 1.5])
    count = 40_000
    bits = random_bits(0, count * len(values), keys_of(3, 1, 0), CPU).view(count, -1)
    rounded = round_by_chance(values.expand(count, -1).contiguous(), bits).double()
    down, up = rounded.min(0).values, rounded.max(0).values
    # The standard deviation of one rounding is at most half the distance of the neighbours.
    error = (rounded.mean(0) - values.double()).abs()
    assert (error <= 4 * (up - down) / 2 / count**0.5).all(), error / (up - down)
    exact = values.bfloat16().float() == values
    assert exact.tolist() == [False] * 5 + [True] * 2
    assert torch.equal(up[exact], values[exact].double()) and torch.equal(down[exact], values[exact].double())
    assert all(len(column.unique()) == 2 for column in rounded.T[:5])


def test_infinity_and_nan_stay_what_they_are() -> None:
    values = torch.tensor([float("inf"), float("-inf"), float("nan")])
    rounded = round_by_chance(values, torch.full((3,), 65535)).float()
    assert rounded[:2].tolist() == values[:2].tolist() and rounded[2].isnan()


def test_random_bits_are_even_and_differ_by_place_step_and_tensor() -> None:
    bits = random_bits(0, 2**18, keys_of(0, 1, 0), CPU)
    assert int(bits.min()) >= 0 and int(bits.max()) < 65536
    for bit in range(16):
        assert float((bits >> bit & 1).double().mean()) == pytest.approx(0.5, abs=0.005)
    assert float((bits[1:] * bits[:-1]).double().mean()) == pytest.approx((65535 / 2) ** 2, rel=0.01)
    assert torch.equal(bits[1000:1100], random_bits(1000, 100, keys_of(0, 1, 0), CPU)), "pieces are the whole's"
    for other in (keys_of(0, 2, 0), keys_of(0, 1, 1), keys_of(1, 1, 0)):
        assert float((random_bits(0, 2**18, other, CPU) == bits).double().mean()) < 1e-4


def test_the_arithmetic_is_that_of_torch_in_fp32() -> None:
    torch.manual_seed(0)
    weight, gradient = torch.randn(300, 7).bfloat16(), torch.randn(300, 7).bfloat16()
    exact = torch.nn.Parameter(weight.float())
    optimizer = torch.optim.AdamW([exact], lr=1e-3, weight_decay=0.01)
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    exact.grad = gradient.float()
    optimizer.step()
    plain_adamw_(weight, gradient, mean, square, settings())
    state = optimizer.state[exact]
    torch.testing.assert_close(mean, state["exp_avg"].bfloat16())
    torch.testing.assert_close(square, state["exp_avg_sq"].bfloat16())
    gap = (weight.float() - exact.detach()).abs() / exact.detach().abs()
    assert float(gap.max()) < 2**-7, "one of the two neighbours"
    assert float((weight.float() - exact.detach()).mean()) == pytest.approx(0, abs=2e-4)


def test_tiny_updates_survive_and_vanish_when_rounded_to_the_nearest() -> None:
    steps, lr = 200, 1e-5
    weight = torch.ones(20_000, dtype=torch.bfloat16)
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, steps + 1):
        plain_adamw_(weight, torch.ones_like(weight), mean, square, settings(step, lr, 0.0))
    # Each update is lr, whatever the gradient; the spread of a mean of 20,000 is far below the sum of 0.002.
    assert float((1 - weight.double()).mean()) == pytest.approx(steps * lr, rel=0.1)
    nearest = torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([nearest], lr=lr, weight_decay=0.0, fused=True)
    for _ in range(steps):
        nearest.grad = torch.ones_like(nearest)
        optimizer.step()
    assert torch.equal(nearest.detach(), torch.ones_like(nearest)), "this is what the setting is for"


RUNS_HERE = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.slow
@pytest.mark.skipif(RUNS_HERE, reason="the next test runs in this process")
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed (there is none for this system)")
def test_the_kernel_is_right_in_tritons_interpreter() -> None:
    test = f"{__file__}::{test_the_kernel_is_the_plain_step.__name__}"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", test]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0 and "8 passed" in ran.stdout, ran.stdout[-3000:]


@pytest.mark.skipif(not RUNS_HERE, reason="needs a GPU or Triton's interpreter")
@pytest.mark.parametrize("by_chance", [True, False])
@pytest.mark.parametrize("shape", [(5,), (1024,), (300, 7), (3, 1, 1000)])
def test_the_kernel_is_the_plain_step(shape: tuple[int, ...], by_chance: bool) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    draw = torch.Generator().manual_seed(1)
    weight, gradient, mean = (torch.randn(shape, generator=draw).bfloat16().to(device) for _ in range(3))
    square = torch.rand(shape, generator=draw).bfloat16().to(device)
    fast, plain = ([t.clone() for t in (weight, mean, square)] for _ in range(2))
    for step in (1, 2, 77):
        made = settings(step, number=step)
        made = made if by_chance else replace(made, keys=None)
        scale = None if step == 2 else torch.tensor(0.3, device=device)
        version = fast[0]._version
        adamw_(fast[0], gradient, fast[1], fast[2], made, scale)
        assert fast[0]._version > version, "or backward would not see a weight changed too soon"
        plain_adamw_(plain[0], gradient, plain[1], plain[2], made, scale)
    for ours, wanted in zip(fast, plain, strict=True):
        # An fp32 value that is off by its last bit rounds the other way once in thousands.
        differing = (ours != wanted).double().mean()
        assert float(differing) <= 0.01, float(differing)
        torch.testing.assert_close(ours, wanted, rtol=2**-7, atol=1e-6)
    assert not torch.equal(fast[0], weight)

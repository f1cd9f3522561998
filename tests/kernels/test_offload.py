"""Blocks' inputs that wait in the host's memory: each comes back once, and memory is taken once."""

from __future__ import annotations

import pytest
import torch

from sweeptune.kernels.fuse import fuse, fused
from sweeptune.kernels.offload import Stash
from sweeptune.training.loss import summed_nll
from tests.kernels.helpers import batch, build


def test_inputs_come_back_in_reverse_order_and_only_once():
    stash = Stash()
    inputs = [torch.randn(2, 3, 4) for _ in range(4)]
    tickets = [stash.put(x) for x in inputs]
    for x in inputs:
        x.zero_()  # the device's memory is somebody else's now
    for ticket, seed in zip(reversed(tickets), range(4), strict=True):
        found = stash.get(ticket)
        assert found is not None and found.shape == (2, 3, 4) and found.any(), seed
        assert tickets[max(0, ticket.number - 1)].held is not None or ticket.number == 0, "the next one is on its way"
    with pytest.raises(RuntimeError, match="after its pass has ended"):
        stash.get(tickets[0])
    assert stash.get(None) is None


def test_what_another_pass_has_taken_over_is_not_given_out():
    stash = Stash()
    old = stash.put(torch.ones(4))
    stash.clear()
    new = [stash.put(torch.zeros(4)) for _ in range(2)]
    with pytest.raises(RuntimeError, match="after its pass has ended"):
        stash.get(old)
    stash.get(new[0])
    with pytest.raises(RuntimeError, match="after its pass has ended"):
        stash.get(new[1])


def test_what_comes_back_is_what_was_put_away():
    stash = Stash()
    inputs = [torch.randn(5, 4) for _ in range(3)]
    tickets = [stash.put(x) for x in inputs]
    for x, ticket in zip(inputs[::-1], tickets[::-1], strict=True):
        found = stash.get(ticket)
        assert found is not None and torch.equal(found, x) and found.data_ptr() != x.data_ptr()


def test_host_memory_is_taken_once_also_for_other_sizes_and_after_an_abandoned_pass():
    stash = Stash()

    def step(*sizes: int) -> None:
        stash.clear()
        for ticket in reversed([stash.put(torch.ones(size)) for size in sizes]):
            stash.get(ticket)

    step(100, 100, 100)
    assert stash.host_bytes == 3 * 400
    step(100, 60, 80)
    assert stash.host_bytes == 3 * 400, "smaller ones go where larger ones were"
    for _ in range(3):
        stash.clear()
        stash.put(torch.ones(100))  # out of memory in the forward pass: nobody asks for it
    step(100, 100, 100)
    assert stash.host_bytes == 3 * 400
    step(200, 200, 200)
    assert stash.host_bytes == 3 * 800, "what is too small is given back"


@pytest.mark.parametrize("options", [{"recompute": True}, {"offload": True}])
def test_a_block_keeps_its_input_alone(options):
    model = build("llama", "lora")
    fuse(model, torch.float32, **options)
    fast = fused(model)
    assert fast is not None
    loss = summed_nll(model, batch("even"))
    node, kept = loss.grad_fn, []
    while node is not None:
        if type(node).__name__ == "BlockFunctionBackward":
            kept.append((node.saved, node.input))
        node = next((parent for parent, _ in node.next_functions if parent is not None), None)
    assert len(kept) == 3 and all(saved is None for saved, _ in kept)
    assert [isinstance(held, torch.Tensor) for _, held in kept] == ["recompute" in options] * 3
    loss.backward()
    if fast.stash is not None:
        assert fast.stash.host_bytes == 3 * 3 * 23 * 64 * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: streams are the point")
def test_on_a_gpu_inputs_come_back_whole_and_memory_is_used_again():
    stash, size = Stash(), 2**24
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    for abandoned in (False, True, False):
        stash.clear()
        tickets = []
        for number in range(8):
            x = torch.full((size,), float(number), device="cuda")
            tickets.append(stash.put(x))
            last = x.data_ptr()
            del x
            torch.full((size,), -1.0, device="cuda")  # somebody else's
        for ticket in tickets[: 5 if abandoned else 0 : -1]:
            found = stash.get(ticket)
            assert found is not None and bool((found == ticket.number).all())
            assert ticket.number < 7 or found.data_ptr() == last, "the last one never left"
            del found
            torch.full((size,), -2.0, device="cuda")
    assert torch.cuda.max_memory_reserved() - before <= 6 * size * 4

"""Blocks' inputs that wait in the host's memory between forward and backward, copied beside the computation."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(eq=False)
class Ticket:
    """An input that was put away.

    Attributes:
        number: How many were put away before it.
        host: Where its elements wait, at the front.
        held: The input on its device: until nothing reads it any more there, and again when it is back.
        copied: When it has arrived on the other side.
    """

    number: int
    host: torch.Tensor
    shape: torch.Size
    device: torch.device
    held: torch.Tensor | None = None
    copied: torch.cuda.Event | None = None


class Stash:
    """Puts inputs into pinned host memory, and brings each back while the block behind it still computes.

    Backward passes ask in reverse order; when one is asked for, the one before it is sent for. Host memory is taken
    once and used again in every step.

    All device memory belongs to the computing stream, which waits for the copying one before it gives any of it up.
    (Were it lent to the copying stream by ``record_stream``, the allocator would have to see each copy ended before it
    could use the memory again, and a host that runs ahead of its device never sees that: 2.2 GiB more were reserved.)

    Attributes:
        host_bytes: What is pinned.
    """

    def __init__(self) -> None:
        self.host_bytes = 0
        self._free: list[torch.Tensor] = []
        self._tickets: list[Ticket] = []
        self._stream: torch.cuda.Stream | None = None

    def put(self, hidden: torch.Tensor) -> Ticket:
        """Begin to copy a block's input to the host; it stays on its device until the next one is put away."""
        self._give_up()
        flat = hidden.detach().reshape(-1)
        ticket = Ticket(len(self._tickets), self._take(flat), hidden.shape, hidden.device)
        self._tickets.append(ticket)
        if hidden.is_cuda:
            stream = self._beside(hidden.device)
            with torch.cuda.stream(stream):
                ticket.host[: flat.numel()].copy_(flat, non_blocking=True)
                ticket.held, ticket.copied = flat.view(hidden.shape), stream.record_event()
        else:
            ticket.host[: flat.numel()].copy_(flat)
        return ticket

    def _give_up(self) -> None:
        """Let go of the input that was put away last."""
        if self._tickets:
            last = self._tickets[-1]
            self._wait_for(last)
            last.held = None

    def _wait_for(self, ticket: Ticket) -> None:
        if ticket.copied is not None:
            torch.cuda.current_stream(ticket.device).wait_event(ticket.copied)

    def get(self, ticket: Ticket | None) -> torch.Tensor | None:
        """The input on its device again, once; the last one never left.

        Raises:
            RuntimeError: Its memory on the host has been given away already.
        """
        if ticket is None:
            return None
        if ticket not in self._tickets[ticket.number : ticket.number + 1]:
            raise RuntimeError(
                "a block's input is asked for after its pass has ended; with hardware.gradient_checkpointing=offload "
                "backward passes run once, right behind their forward pass"
            )
        self._send_for(ticket)
        if ticket.number > 0:
            self._send_for(self._tickets[ticket.number - 1])
        self._wait_for(ticket)
        found, ticket.held = ticket.held, None
        self._free += [each.host for each in self._tickets[ticket.number :]]
        del self._tickets[ticket.number :]
        return found

    def _send_for(self, ticket: Ticket) -> None:
        if ticket.held is not None:  # it never left, or is on its way
            return
        there = ticket.host[: ticket.shape.numel()]
        if ticket.device.type != "cuda":
            ticket.held = there.clone().view(ticket.shape)
            return
        ticket.held = torch.empty(ticket.shape, dtype=ticket.host.dtype, device=ticket.device)
        stream = self._beside(ticket.device)
        with torch.cuda.stream(stream):
            ticket.held.view(-1).copy_(there, non_blocking=True)
            ticket.copied = stream.record_event()

    def _beside(self, device: torch.device) -> torch.cuda.Stream:
        """The copying stream, behind all that the computing one was told so far."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))
        return self._stream

    def clear(self) -> None:
        """Forget what an abandoned pass has put away; call it before every forward pass."""
        if self._tickets and self._stream is not None:
            torch.cuda.current_stream(self._tickets[0].device).wait_stream(self._stream)
        self._free += [ticket.host for ticket in self._tickets]
        self._tickets.clear()

    def _take(self, flat: torch.Tensor) -> torch.Tensor:
        for i, there in enumerate(self._free):
            if there.dtype == flat.dtype and there.numel() >= flat.numel():
                return self._free.pop(i)
        if self._free:
            self.host_bytes -= self._free.pop().nbytes
        made = torch.empty(flat.numel(), dtype=flat.dtype, pin_memory=flat.is_cuda)
        self.host_bytes += made.nbytes
        return made

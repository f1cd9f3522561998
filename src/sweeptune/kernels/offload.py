"""Blocks' inputs that wait in the host's memory between forward and backward, copied beside the computation."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(eq=False)
class Ticket:
    """An input that was put away."""

    number: int
    host: torch.Tensor
    shape: torch.Size
    device: torch.device
    ready: torch.cuda.Event | None = None
    back: torch.Tensor | None = None


class Stash:
    """Puts inputs into pinned host memory, and brings each back while the block behind it still computes.

    Backward passes ask in reverse order; when one is asked for, the one before it is sent for. Host memory is taken
    once and used again in every step.

    Attributes:
        host_bytes: What is pinned.
    """

    def __init__(self) -> None:
        self.host_bytes = 0
        self._free: list[torch.Tensor] = []
        self._tickets: list[Ticket] = []
        self._stream: torch.cuda.Stream | None = None

    def put(self, hidden: torch.Tensor) -> Ticket:
        """Begin to copy a block's input to the host; its device memory is free as soon as that is done."""
        flat = hidden.detach().reshape(-1)
        ticket = Ticket(len(self._tickets), self._take(flat), hidden.shape, hidden.device)
        self._tickets.append(ticket)
        if hidden.is_cuda:
            stream = self._beside(hidden.device)
            stream.wait_stream(torch.cuda.current_stream(hidden.device))
            with torch.cuda.stream(stream):
                ticket.host[: flat.numel()].copy_(flat, non_blocking=True)
            flat.record_stream(stream)
        else:
            ticket.host[: flat.numel()].copy_(flat)
        return ticket

    def get(self, ticket: Ticket | None) -> torch.Tensor | None:
        """The input on its device again, once."""
        if ticket is None:
            return None
        self._send_for(ticket)
        if ticket.number > 0:
            self._send_for(self._tickets[ticket.number - 1])
        if ticket.ready is not None:
            torch.cuda.current_stream(ticket.device).wait_event(ticket.ready)
        found, ticket.back = ticket.back, None
        if found is not None and found.is_cuda:
            found.record_stream(torch.cuda.current_stream(ticket.device))
        self._free.append(ticket.host)
        del self._tickets[ticket.number :]
        return found

    def _send_for(self, ticket: Ticket) -> None:
        if ticket.back is not None:
            return
        count = ticket.shape.numel()
        if ticket.device.type != "cuda":
            ticket.back = ticket.host[:count].clone().view(ticket.shape)
            return
        stream = self._beside(ticket.device)
        with torch.cuda.stream(stream):
            ticket.back = ticket.host[:count].to(ticket.device, non_blocking=True).view(ticket.shape)
            ticket.ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ticket.ready.record(stream)

    def clear(self) -> None:
        """Forget what an abandoned pass has put away; call it before every forward pass."""
        self._free += [ticket.host for ticket in self._tickets]
        self._tickets.clear()

    def _take(self, flat: torch.Tensor) -> torch.Tensor:
        for i, held in enumerate(self._free):
            if held.dtype == flat.dtype and held.numel() >= flat.numel():
                return self._free.pop(i)
        if self._free:
            self.host_bytes -= self._free.pop().nbytes
        made = torch.empty(flat.numel(), dtype=flat.dtype, pin_memory=flat.is_cuda)
        self.host_bytes += made.nbytes
        return made

    def _beside(self, device: torch.device) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._stream

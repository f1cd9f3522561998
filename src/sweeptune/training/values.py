"""Numbers that travel from the device to the host while both go on working."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Arriving:
    """Numbers on their way; see `send_back`."""

    host: torch.Tensor
    event: torch.cuda.Event | None = None

    def wait(self) -> list[float]:
        """The numbers, as soon as they are there: what was issued behind them is not waited for."""
        if self.event is not None:
            self.event.synchronize()
        found: list[float] = self.host.tolist()
        return found


def send_back(*numbers: torch.Tensor) -> Arriving:
    """Begin to copy scalars of one device to the host.

    ``item()`` would do so behind everything that the device has been given meanwhile, the next step included.

    Example:
        >>> issued = send_back(loss, norm)
        >>> train_step(session, following)
        >>> loss, norm = issued.wait()
    """
    together = torch.stack([number.detach().float().reshape(()) for number in numbers])
    if not together.is_cuda:
        return Arriving(together)
    host = torch.empty(len(together), pin_memory=True).copy_(together, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return Arriving(host, event)

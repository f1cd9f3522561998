"""The optimiser's step inside the backward pass (``optim.in_backward``): each weight is changed and its gradient
dropped as soon as that is complete, so that a full fine-tuning never holds all gradients at once.

Only in the last micro-batch of a step: in earlier ones gradients are added up as ever. The update of a weight does not
depend on other gradients, so the weights are those of the ordinary step, bit for bit; clipping, which needs the norm of
all of them, is refused beforehand (`sweeptune.config.memory_rules`). That no weight is changed while backward still
needs it is seen by autograd, which raises where a saved tensor was changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class StepInBackward:
    """Changes weights as their gradients come.

    Args:
        model: What trains in it is changed.
        optimizer: From `sweeptune.training.optimizer.build_optimizer`, over the same weights.

    Attributes:
        begun: Whether a weight of the present step may have been changed, so that the step cannot be repeated.

    Example:
        >>> steps = StepInBackward(model, optimizer)
        >>> with steps.last_micro_batch():
        ...     loss.backward()
        >>> norm = steps.end()
    """

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.begun = False
        self._armed = False
        groups = optimizer.param_groups  # other objects after a checkpoint was loaded, in the same order
        self._group = {p: number for number, group in enumerate(groups) for p in group["params"]}
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._place = {parameter: place for place, parameter in enumerate(self._trained)}
        self._norms: torch.Tensor | None = None
        for parameter in self._trained:
            parameter.register_post_accumulate_grad_hook(self._complete)  # type: ignore[no-untyped-call]

    @contextmanager
    def last_micro_batch(self) -> Iterator[None]:
        """Change weights in the backward pass of this context."""
        self._norms = torch.zeros(len(self._trained), device=self._trained[0].device)
        self._armed = True
        try:
            yield
            for parameter in self._trained:  # that only an earlier micro-batch used
                if parameter.grad is not None:
                    self._complete(parameter)
        finally:
            self._armed = False

    def end(self) -> torch.Tensor:
        """End a step; return the norm of its whole gradient, fp32, on the device."""
        assert self._norms is not None, "no micro-batch was the last one"
        norm: torch.Tensor = torch.linalg.vector_norm(self._norms)
        self.begun, self._norms = False, None
        return norm

    def _complete(self, parameter: torch.nn.Parameter) -> None:
        """Change a weight whose gradient is whole."""
        if not self._armed:
            return
        assert self._norms is not None and parameter.grad is not None
        self.begun = True
        gradient = parameter.grad
        self._norms[self._place[parameter]] = torch.linalg.vector_norm(gradient, dtype=torch.float32)
        every: list[dict[str, Any]] = self.optimizer.param_groups
        self.optimizer.param_groups = [{**every[self._group[parameter]], "params": [parameter]}]
        try:
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = every
        parameter.grad = None

"""An optimiser for weights that are stored in bf16: AdamW in one kernel a tensor (`sweeptune.kernels.adamw`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sweeptune.kernels.adamw import Settings, adamw_, keys_of


class Bf16AdamW(torch.optim.Optimizer):
    """AdamW over bf16 weights; two moments in bf16 are all its state, 4 bytes a weight.

    Each element of weight, gradient and moments is read once and written once, clipping included.

    Args:
        groups: Parameters with their ``weight_decay``, as of `torch.optim.AdamW`.
        lr: Learning rate.
        betas: Decay of the gradient's mean and of its square.
        eps: Floor of the denominator.
        seed: New weights are rounded up or down by chance: it decides, with the step and the parameter's place. None:
            they are rounded to the nearest.

    Attributes:
        scale: What gradients are multiplied by in the next step, fp32, on their device: how they are clipped.

    Example:
        >>> optimizer = Bf16AdamW(model.bfloat16().parameters(), lr=1e-5, seed=0)
    """

    def __init__(
        self,
        groups: Any,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._seed = seed
        self.scale: torch.Tensor | None = None
        every = [parameter for group in self.param_groups for parameter in group["params"]]
        if wrong := {str(parameter.dtype) for parameter in every if parameter.dtype is not torch.bfloat16}:
            raise TypeError(f"weights in {', '.join(sorted(wrong))}: this optimiser is for bf16 alone")
        self._number = {parameter: number for number, parameter in enumerate(every)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Change every weight that has a gradient."""
        seed = self._seed
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    mean, square = torch.zeros_like(parameter), torch.zeros_like(parameter)
                    state |= {"step": 0, "exp_avg": mean, "exp_avg_sq": square}
                state["step"] = int(state["step"]) + 1  # a tensor in a checkpoint of torch's AdamW
                settings = Settings(
                    lr=group["lr"],
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    eps=group["eps"],
                    weight_decay=group["weight_decay"],
                    step=state["step"],
                    keys=None if seed is None else keys_of(seed, state["step"], self._number[parameter]),
                )
                adamw_(parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"], settings, self.scale)
        self.scale = None

"""Muon: momentum whose directions all count alike, for the kernels of convolutions.

Source: Jordan et al., Muon: an optimizer for hidden layers in neural networks (2024); Liu et al., Muon is scalable for
LLM training (2025), for the size of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MOMENTUM = 0.95
POLYNOMIAL = (3.4445, -4.7750, 2.0315)
"""Of degrees 1, 3 and 5: it takes singular values towards 1, and small ones there quickest."""
ITERATIONS = 5
STEP_SIZE = 0.2
"""Root mean square of a kernel's step at a rate of 1, which is about that of Adam's."""
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of Adam."""


class Muon(Optimizer):
    """Muon for the kernels of convolutions, AdamW for all else: norms, biases, and kernels of one voxel, as of heads.

    A kernel (C_out, C_in, ...) is a matrix of C_out rows; of a transposed convolution it is (C_in, C_out, ...), with
    C_in rows. torch's own Muon takes weights of two dimensions only.

    Args:
        parameters: what is trained.
        lr: rate of both: a step moves a kernel's values by a fifth of it (root mean square), others as by AdamW.
        weight_decay: share of each value, times the rate, that a step takes away.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; the closure, if any, computes loss and gradients before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                move = _muon_step if is_kernel(parameter) else _adam_step
                move(parameter, parameter.grad, self.state[parameter], group["lr"])
        return loss


def is_kernel(parameter: Tensor) -> bool:
    """Whether a weight is a kernel of a convolution that looks beyond a single voxel."""
    return parameter.ndim > 2 and parameter.shape[2:].numel() > 1


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix whose singular values are all alike.

    They end between 0.7 and 1.15; those below a hundredth of the matrix' norm stay smaller.

    The polynomial (a + b M M' + c (M M')^2) M, five times; its powers are those of the smaller square matrix, so that
    the large one is only multiplied by what they come to.

    Args:
        matrix: (rows, columns), float32 or float64; of zeros, zeros come back.

    Returns:
        (rows, columns), without a unit.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    a, b, c = POLYNOMIAL
    # Of norm 1, so that no singular value is larger.
    matrix = matrix / matrix.norm().clamp(min=1e-7)
    square = matrix @ matrix.T
    one = torch.eye(len(square), dtype=square.dtype, device=square.device)
    product = one
    for _ in range(ITERATIONS):
        factor = a * one + b * square + c * (square @ square)
        product = factor @ product
        square = factor @ square @ factor
    return product @ matrix


def _muon_step(parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], rate: float) -> None:
    if not state:
        state["momentum_buffer"] = torch.zeros_like(parameter)
    average = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
    # Nesterov's way: the average after one more such gradient.
    matrix = gradient.lerp(average, MOMENTUM).reshape(len(gradient), -1)
    with torch.autocast(parameter.device.type, enabled=False):
        ahead = orthogonal(matrix.float())
    # An orthogonal matrix has a mean square of 1 / the longer side.
    size = STEP_SIZE * max(matrix.shape) ** 0.5
    parameter.add_(ahead.reshape(parameter.shape), alpha=-rate * size)


def _adam_step(parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], rate: float) -> None:
    if not state:
        state["step"] = torch.zeros(())
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
    state["step"] += 1
    count, (first, second) = float(state["step"]), BETAS
    mean = state["exp_avg"].lerp_(gradient, 1 - first)
    square = state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
    deviation = (square / (1 - second**count)).sqrt_().add_(EPSILON)
    parameter.addcdiv_(mean, deviation, value=-rate / (1 - first**count))

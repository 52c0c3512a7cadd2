"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_REFRESH = 10  # steps between two updates of a basis, as the paper's


class SOAP(torch.optim.Optimizer):
    """Adam, with the squares of gradients averaged in a basis in which they vary independently.

    Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", ICLR 2025, algorithm 3. A
    weight of several axes is a matrix, its first axis against all others; a vector takes Adam's
    steps. An automaton's matrices have at most some dozen rows and columns, so that their bases
    cost little beside a training step. They are found on the CPU, since not every device has the
    decompositions.

    Args:
        params: to be trained.
        lr: as Adam's.
        betas: of the mean gradient; and of its squares and the preconditioner's two factors.
        eps: added to the root of the squares.
        weight_decay: decoupled, as AdamW's.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change the weights by their gradients."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is not None:
                    if group["weight_decay"]:
                        weights.mul_(1 - group["lr"] * group["weight_decay"])
                    step = _change(weights.grad, self.state[weights], group["betas"], group["eps"])
                    weights.sub_(step.view_as(weights), alpha=group["lr"])
        return loss


def _change(
    gradient: Tensor, state: dict[str, Any], betas: tuple[float, float], eps: float
) -> Tensor:
    """What is subtracted at a rate of 1; the state is updated in place."""
    first, second = betas
    if gradient.ndim > 1:
        gradient = gradient.flatten(1)
    if not state:
        zeros = torch.zeros_like(gradient)
        state.update(step=torch.tensor(0.0), mean=zeros, squares=zeros.clone())
        for side, factor in _factors(gradient):
            state[side] = factor
            state[f"{side}_basis"] = torch.linalg.eigh(factor.cpu())[1].to(factor.device)
    state["step"] += 1
    count = int(state["step"])
    state["mean"].lerp_(gradient, 1 - first)
    turned = _into_basis(gradient, state)
    state["squares"].lerp_(turned.square(), 1 - second)
    root = (state["squares"] / (1 - second**count)).sqrt_().add_(eps)
    change = _out_of_basis(_into_basis(state["mean"], state) / root, state)
    for side, factor in _factors(gradient):
        state[side].lerp_(factor, 1 - second)
        if count % _REFRESH == 0:  # one step of the power method, which keeps the order
            turned = state[side] @ state[f"{side}_basis"]
            state[f"{side}_basis"] = torch.linalg.qr(turned.cpu())[0].to(turned.device)
    return change / (1 - first**count)


def _factors(gradient: Tensor) -> Iterable[tuple[str, Tensor]]:
    """The preconditioner's of one gradient; none of a vector's."""
    if gradient.ndim > 1:
        yield "rows", gradient @ gradient.mT
        yield "columns", gradient.mT @ gradient


def _into_basis(matrix: Tensor, state: dict[str, Tensor]) -> Tensor:
    if matrix.ndim > 1:
        matrix = state["rows_basis"].mT @ matrix @ state["columns_basis"]
    return matrix


def _out_of_basis(matrix: Tensor, state: dict[str, Tensor]) -> Tensor:
    if matrix.ndim > 1:
        matrix = state["rows_basis"] @ matrix @ state["columns_basis"].mT
    return matrix

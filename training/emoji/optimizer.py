"""Muon for the matrices of the network, AdamW for the rest, over processes that share the work.

Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024) makes the
momentum of each matrix nearly orthogonal by a Newton-Schulz iteration. Scaled to the size that
AdamW's updates have (Liu et al., "Muon is scalable for LLM training", 2025), it takes AdamW's
learning rate, and learns this set in fewer steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTUM = 0.95
DECAY = 0.01
"""Weight decay, of matrices and embeddings alike."""


def orthogonal(matrix: Tensor) -> Tensor:
    """Close to the orthogonal matrix that is nearest, by 5 steps in bfloat16."""
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    nearest: Tensor = x.T if tall else x
    return nearest.to(matrix.dtype)


class Optimizer:
    """Steps of every process with the mean of their gradients, so that all stay the same."""

    def __init__(self, matrices: Sequence[nn.Parameter], others: Sequence[nn.Parameter]) -> None:
        self._matrices = list(matrices)
        self._others = list(others)
        self._momenta = [torch.zeros_like(p) for p in self._matrices]
        decayed = [p for p in self._others if p.ndim >= 2]
        vectors = [p for p in self._others if p.ndim < 2]
        self._adamw = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": DECAY},
                {"params": vectors, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.99),
            fused=True,
        )
        # The matrices whose updates this process works out: every one is one process's.
        sizes = [p.numel() * min(len(p), p.numel() // len(p)) for p in self._matrices]
        loads = [0] * dist.get_world_size()
        self._mine: set[int] = set()
        for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            least = loads.index(min(loads))
            loads[least] += sizes[index]
            if least == dist.get_rank():
                self._mine.add(index)

    def state_dict(self) -> dict[str, object]:
        return {"momenta": self._momenta, "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        momenta, adamw = state["momenta"], state["adamw"]
        assert isinstance(momenta, list)
        assert isinstance(adamw, dict)
        for own, saved in zip(self._momenta, momenta, strict=True):
            own.copy_(saved)
        self._adamw.load_state_dict(adamw)

    @torch.no_grad()
    def step(self, rate: float, told: Tensor) -> Tensor:
        """One step at this learning rate; returns the mean of the vectors `told` by the processes.
        Takes the gradients away."""
        every = [*self._matrices, *self._others]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in every]
        means = _mean([*gradients, told])
        norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in means[:-1]]))
        for parameter, mean in zip(every, means, strict=False):
            parameter.grad = mean * torch.clamp(1 / (norm + 1e-6), max=1.0)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        self._turn(rate)
        for parameter in every:
            parameter.grad = None
        return means[-1]

    def _turn(self, rate: float) -> None:
        updates = []
        for index, (matrix, momentum) in enumerate(zip(self._matrices, self._momenta, strict=True)):
            gradient = matrix.grad
            assert gradient is not None
            momentum.lerp_(gradient, 1 - MOMENTUM)
            if index in self._mine:
                flat = gradient.lerp(momentum, MOMENTUM).flatten(1)
                update = orthogonal(flat) * (0.2 * max(flat.shape) ** 0.5)
                updates.append(update.view_as(matrix) * dist.get_world_size())
            else:
                updates.append(torch.zeros_like(matrix))
        for matrix, update in zip(self._matrices, _mean(updates), strict=True):
            matrix.mul_(1 - rate * DECAY).sub_(update, alpha=rate)


def _mean(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean of each over the processes."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [p.view(t.shape) for p, t in zip(pieces, tensors, strict=True)]

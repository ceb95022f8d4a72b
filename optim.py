"""Muon for the matrices inside blocks, AdamW for all other weights."""

import torch
from torch import Tensor

from vist2 import Vist2

ADAMW_RATE = 0.6  # of Muon's learning rate


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024), for matrices: every step is the momentum with its singular values
    brought close to 1, so that all directions of a matrix are learned alike.

    What torch.optim.Muon does with adjust_lr_fn="match_rms_adamw", but in float32: on processors
    without bfloat16 instructions that one takes 30 times as long, a whole step four times.
    """

    def __init__(self, matrices, lr: float, weight_decay=0.01, momentum=0.95):
        super().__init__(matrices, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                mean = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalize(p.grad.lerp(mean, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                as_large_as_adamws = 0.2 * max(p.shape) ** 0.5
                p.add_(update, alpha=-group["lr"] * as_large_as_adamws)


def orthogonalize(matrix: Tensor) -> Tensor:
    """About the nearest matrix with singular values of 1: five Newton-Schulz iterations with the
    coefficients of Jordan et al. Most values come out between 0.7 and 1.2."""
    x = matrix / matrix.norm().clamp(min=1e-7)
    if matrix.shape[0] > matrix.shape[1]:
        x = x.T
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def make_optimizers(model: Vist2, lr: float) -> list[torch.optim.Optimizer]:
    matrices, others = [], []
    for name, p in model.named_parameters():
        (matrices if ".blocks." in name and p.ndim == 2 else others).append(p)
    how = dict(lr=ADAMW_RATE * lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return [Muon(matrices, lr=lr), torch.optim.AdamW(others, **how)]

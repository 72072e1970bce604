"""The optimizer of codec and discriminators: AdamW, whose rate is set anew for every step."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def adamw(
    parameters: Iterable[Any], learning_rate: float, betas: list[float], weight_decay: float, is_recorded: bool
) -> torch.optim.AdamW:
    """Fused AdamW of parameters, or groups of them; if its steps are to be recorded, all it needs is on the device."""
    optimizer = torch.optim.AdamW(
        parameters,
        lr=learning_rate,
        betas=(betas[0], betas[1]),
        weight_decay=weight_decay,
        fused=True,
        capturable=is_recorded,
    )
    if is_recorded:
        device = next(parameter.device for group in optimizer.param_groups for parameter in group["params"])
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(learning_rate, device=device)
    return optimizer


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set the learning rate of a group, in place where it is on the device."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def wrong_betas(betas: Sequence[float], name: str) -> list[str]:
    """A sentence about AdamW's decay rates, if they are none."""
    if len(betas) == 2 and all(0 <= beta < 1 for beta in betas):
        return []
    return [f"{name} must be two numbers in [0, 1), got {betas}"]

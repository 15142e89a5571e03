"""Mixed precision of a forward pass."""

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[None]:
    """Return the context that runs matrix products in `dtype`; weights and losses stay in fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if dtype == "bfloat16" else nullcontext()

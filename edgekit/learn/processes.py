"""One process or several: what accelerate and torch need to be told."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

if TYPE_CHECKING:
    from edgekit.learn.graph import Decoder

PATIENCE = timedelta(days=7)
"""How long processes wait for the first, which calibrates and builds alone."""


def accelerate() -> Accelerator:
    """The accelerator of this process; torchrun's environment says whether there are others. bf16 where it is fast."""
    gpu = torch.cuda.is_available()
    fast = gpu and torch.cuda.is_bf16_supported()
    return Accelerator(
        cpu=not gpu,
        mixed_precision="bf16" if fast else "no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )


def shard(decoder: Decoder) -> None:
    """Divide a decoder that is not trained among all processes, layer by layer (FSDP2); nothing for one process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(kind, (torch.distributed.get_world_size(),))
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(decoder, mesh=mesh)

"""Tensors as bytes of safetensors files; what moves bytes alone, without torch, is in `exporter.checkpoint.shards`."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from exporter.common.errors import RunFailed
from exporter.common.files import write_errors
from exporter.models.weights import ROW_DTYPES

TORCH_DTYPES = dict(zip(ROW_DTYPES, (torch.float32, torch.float16, torch.bfloat16), strict=True))


def encode_row(values: Tensor, dtype: str) -> bytes:
    """Bytes of one row, float32 (d,), in a file's dtype, one of ROW_DTYPES. RunFailed if not finite."""
    row = values.detach().cpu().to(TORCH_DTYPES[dtype]).contiguous()
    if not torch.isfinite(row).all():
        raise RunFailed(f"a vocabulary row does not fit its dtype {dtype}: NaN or infinity")
    return row.view(torch.uint8).numpy().tobytes()


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a small file of tensors, kept in memory meanwhile. RunFailed if the disk is full or fails."""
    # Cloned: the library refuses tensors that share memory.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = safetensors.torch.save(own, {"format": "pt"})  # save_file's own errors are not OSErrors
    with write_errors(path, len(content)), path.open("xb") as file:
        file.write(content)

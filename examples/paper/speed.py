"""How fast a checkpoint is against its base: pairs of the same work, measured in turn."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from exporter.models.files import find_base
from exporter.models.loading import load_checkpoint, load_files

PREFILL, DECODE, PAIRS = 256, 48, 5


@dataclass(frozen=True)
class Speed:
    """Tokens per second of the base; ratios of the checkpoint's to it, medians over pairs."""

    prefill: float
    decode: float
    prefill_ratio: float
    decode_ratio: float

    def cells(self) -> dict[str, str]:
        return {
            "prefill, base": f"{self.prefill:.0f} tokens/s",
            "prefill": f"x{self.prefill_ratio:.3f}",
            "decode, base": f"{self.decode:.1f} tokens/s",
            "decode": f"x{self.decode_ratio:.3f}",
        }

    @staticmethod
    def note() -> str:
        return f"Prefill of {PREFILL} tokens, then {DECODE} tokens one by one; medians of {PAIRS} pairs in turn."


def compare_speed(base: str, checkpoint: str, dtype: str, device: str) -> Speed:
    models = [load_files(find_base(base), dtype, device).model, load_checkpoint(checkpoint, dtype, device).model]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(models[0].config.vocab_size, (1, PREFILL + DECODE), generator=generator).to(models[0].device)
    for model in models:
        measure(model, ids[:, : PREFILL + 4])  # warm
    pairs = [[measure(model, ids) for model in models] for _ in range(PAIRS)]
    prefill, decode = ([[PREFILL, DECODE][which] / one[which] for one, _ in pairs] for which in (0, 1))
    ratios = [statistics.median(one[which] / other[which] for one, other in pairs) for which in (0, 1)]
    return Speed(statistics.median(prefill), statistics.median(decode), *ratios)


@torch.inference_mode()
def measure(model: Any, ids: torch.Tensor) -> tuple[float, float]:
    """Seconds of the prefill and of decoding the rest of ids (1, tokens), whatever the model would have written."""
    start = time.perf_counter()
    cache = model(input_ids=ids[:, :PREFILL], use_cache=True, logits_to_keep=1).past_key_values
    settle(ids)
    middle = time.perf_counter()
    for place in range(PREFILL, ids.shape[1]):
        cache = model(input_ids=ids[:, place : place + 1], past_key_values=cache, use_cache=True).past_key_values
    settle(ids)
    return middle - start, time.perf_counter() - middle


def settle(ids: torch.Tensor) -> None:
    """Wait for a GPU, whose calls return before the work is done."""
    if ids.is_cuda:
        torch.cuda.synchronize()

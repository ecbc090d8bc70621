"""Vector functions of the CPU, each called once from one thread before a model runs on several.

MKL 2024.2, which torch's wheels carry, picks the kernel of a vector function when that function is first called. Where
several threads make the first call at once, one of them may compute its part with a kernel of a thousand times the
error (pytorch issue 188792): cosines of position embeddings that are off by 1e-4, once, in a process's first forward.
Statistics, calibration and the comparison with a base would all take that for a difference of the models.
"""

from __future__ import annotations

# Of those that torch hands to MKL: what models, losses and the interventions call.
FUNCTIONS = ("cos", "sin", "exp", "expm1", "log", "log1p", "log2", "log10", "sqrt", "tanh", "erf", "erfc")
FEW = 64  # elements: torch shares out longer tensors among its threads


def make_first_calls() -> None:
    """Call each function on a few float32 and float64 elements, in the calling thread."""
    import torch

    for dtype in (torch.float32, torch.float64):
        values = torch.full((FEW,), 0.5, dtype=dtype)
        for name in FUNCTIONS:
            getattr(torch, name)(values)

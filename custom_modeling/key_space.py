"""Key Space Detection (section 4 of arXiv:2503.21730): queries of a skill are recognised by a key vector and refused.

A token whose key vector (the input of the MLP's down projection) lies inside a stored region belongs to the forgotten
skill, and only the refusal may follow it. The paper's region is a hypercube; a region may also bound coordinates of
the key along a few directions. The refusal is one vocabulary row R, after which only EOS may
follow. Both rules look at one position at a time and keep no state between calls, so batches, beams, caches and
streaming work unchanged.
"""

import torch

# Finite, because a row of -inf turns into NaN when a logits processor suppresses the one finite entry; fits float16.
FORBIDDEN = -1.0e4
# Second choices, for callers that mask the first, so that neither a grammar nor a forced minimum length goes on to an
# answer: EOS instead of R, and R again instead of EOS. Not far below the first, as beams add them up or divide them by
# the length of what they compare.
SECOND = -50.0


def inside_hypercubes(key, bounds):
    """Whether each key vector lies inside any of the hypercubes.

    key: (..., d_ff), any float dtype; bounds: (c, 2, d_ff) float32, lower and upper. Returns (...) bool.
    Written as "not outside", so that a NaN in key or bounds counts as inside and is refused.
    """
    key = key.float()
    hit = torch.zeros(key.shape[:-1], dtype=torch.bool, device=key.device)
    for cube in bounds:
        hit = hit | ~((key < cube[0]) | (key > cube[1])).any(-1)
    return hit


def coordinates(key, directions):
    """P k, one direction at a time: key (..., d_ff), any float dtype; directions (r, d_ff) -> (..., r) float32.

    A product and a sum instead of a matrix product, which has other precisions (TF32, autocast) and other last bits
    in batches.
    """
    key = key.float()
    return torch.stack([(key * direction).sum(-1) for direction in directions], -1)


def inside_regions(key, directions, limits, bounds=None):
    """Whether each key vector lies inside any of the regions.

    key: (..., d_ff), any float dtype; directions: (r, d_ff) float32; limits: (c, 2, r) float32, lower and upper of the
    coordinates P k; bounds: those of the key itself, (c, 2, d_ff) float32, or None. Returns (...) bool. As in
    `inside_hypercubes` a NaN counts as inside.
    """
    found = coordinates(key, directions).unsqueeze(-2)  # (..., 1, r)
    inside = ~((found < limits[:, 0]) | (found > limits[:, 1])).any(-1)  # (..., c)
    if bounds is not None:
        held = [inside_hypercubes(key, cube.unsqueeze(0)) for cube in bounds]
        inside = inside & torch.stack(held, -1)
    return inside.any(-1)


def rewrite_logits(logits, hit, after_refusal, refusal_id, eos_id):
    """Impose the refusal on logits (batch, positions, vocabulary), in place; both masks: (batch, positions) bool.

    After a hit only R can follow, or EOS where R is masked; after R only EOS, or R where EOS is masked, and that rule
    wins; everywhere else R cannot follow.
    """
    logits.masked_fill_((hit | after_refusal).unsqueeze(-1), FORBIDDEN)
    zero = torch.zeros((), dtype=logits.dtype, device=logits.device)
    refusal = torch.where(after_refusal, zero + SECOND, torch.where(hit, zero, zero + FORBIDDEN))
    eos = torch.where(after_refusal, zero, torch.where(hit, zero + SECOND, logits[..., eos_id]))
    logits[..., refusal_id] = refusal
    logits[..., eos_id] = eos
    return logits

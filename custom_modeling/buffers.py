"""The buffers of an unskill checkpoint: names inside the base model, shapes and dtypes."""

import torch

UNSKILL = "unskill_"
# Of an MLP: adjusted neurons, pruned neurons, regions of the key space.
NA_INDEX, NA_PARAMS, NA_KEY = "unskill_na_index", "unskill_na_params", "unskill_na_key"
SP_INDEX = "unskill_sp_index"
KSD_BOUNDS = "unskill_ksd_bounds"
KSD_DIRECTIONS, KSD_LIMITS = "unskill_ksd_directions", "unskill_ksd_limits"
# Of the base model's module for the refusal's states.
STATES = "unskill_states"
REFUSAL_STATES = f"unskill_refusal.{STATES}"


def mlp_forms(size, cubes=0, adjusted=0, pruned=0, regions=0, directions=0):
    """Shape and dtype of an MLP's buffers by name, for numbers of regions, adjusted and pruned neurons; size: d_ff.

    Indices are ascending numbers of neurons; rows of params are mu_f, sd_f, mu_r, sd_r; keys are the neurons' parts of
    the draws' hash; bounds and limits are lower and upper. cubes: regions that bound the key itself; regions: those
    that bound its coordinates along `directions`; where an MLP has both, they are the same regions.
    """
    forms: dict = {}
    if adjusted:
        forms[NA_INDEX] = (adjusted,), torch.int64
        forms[NA_PARAMS] = (4, adjusted), torch.float32
        forms[NA_KEY] = (adjusted,), torch.int64
    if pruned:
        forms[SP_INDEX] = (pruned,), torch.int64
    if cubes:
        forms[KSD_BOUNDS] = (cubes, 2, size), torch.float32
    if regions:
        forms[KSD_DIRECTIONS] = (directions, size), torch.float32
        forms[KSD_LIMITS] = (regions, 2, directions), torch.float32
    return forms


def states_form(hidden_size):
    """Shape and dtype of the refusal's states: at a blocked position and at R."""
    return (2, hidden_size), torch.float32


def unfilled(form):
    """A placeholder of this shape and dtype until a checkpoint is loaded: integers 0, others NaN, which refuse all.

    On the device that is current: engines make parameters on none and fill buffers where they are.
    """
    shape, dtype = form
    return torch.full(shape, torch.nan if dtype.is_floating_point else 0, dtype=dtype)


def in_mlp(layer, name):
    """An MLP's buffer by its name inside the base model."""
    return f"layers.{layer}.mlp.{name}"


def layer_of(name):
    """The layer of an MLP's buffer, from its name inside the base model."""
    return int(name.split(".")[1])


def is_unskill(name):
    """Whether a tensor with this name, in any module, is a buffer of an intervention."""
    return f".{UNSKILL}" in f".{name}"

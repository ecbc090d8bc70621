"""The interventions inside an MLP, for each form that an MLP may have."""

from torch import nn

from custom_modeling.buffers import KSD_BOUNDS, NA_INDEX, UNSKILL, mlp_forms, unfilled
from custom_modeling.key_space import inside_hypercubes, inside_regions
from custom_modeling.neuron_adjust import adjust, adjust_official


class Float32Buffers(nn.Module):
    """Mixin: buffers of this module named unskill_* move between devices but keep their dtype."""

    def _apply(self, fn, recurse=True):
        before = {name: tensor for name, tensor in self._buffers.items() if name.startswith(UNSKILL)}
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            if tensor is not None and self._buffers[name].dtype != tensor.dtype:
                self._buffers[name] = tensor.to(self._buffers[name].device)
        return self


class InterventionMLP(Float32Buffers):
    """Mixin for an MLP with one or more interventions, in this order; a subclass for each form knows its parts.

    Neuron Adjust moves selected pre-activations, Selective Pruning zeroes selected dimensions of the key, Key Space
    Detection records which positions have a key inside a region.
    """

    unskill_read: tuple  # names of the linear modules that the key comes from, that of the pre-activations first
    unskill_act: str
    unskill_down: str

    def unskill_key_size(self, config):
        return inputs_of(getattr(self, self.unskill_down))

    def unskill_install(self, config, official=False, **counts):
        """Add empty buffers for these numbers of regions, adjusted and pruned neurons, see `mlp_forms`.

        `official`: Neuron Adjust as in the authors' code.
        """
        for name, form in mlp_forms(self.unskill_key_size(config), **counts).items():
            self.register_buffer(name, unfilled(form))
        kinds = "cubes", "regions", "adjusted", "pruned"
        self.unskill_cubes, self.unskill_regions, self.unskill_adjusted, self.unskill_pruned = (
            counts.get(kind, 0) for kind in kinds
        )
        self.unskill_official = official
        self.unskill_hit = None
        self.unskill_handed, self.unskill_place = {}, None  # shared with the model, see `unskill_hand_out`

    def unskill_adjust(self, value):
        """Pre-activations (batch, positions, d_ff) after Neuron Adjust."""
        if not self.unskill_adjusted:
            return value
        if self.unskill_official:
            return adjust_official(value, self.unskill_na_index, self.unskill_na_params)
        handed = self.unskill_handed.get(self.unskill_place)
        if handed is None:
            raise RuntimeError(
                "unskill: Neuron Adjust needs positions, which only the model's forward has (no gradient "
                "checkpointing)."
            )
        if handed[0].device != value.device:
            handed = [part.to(value.device) for part in handed]
        return adjust(value, self._buffers[NA_INDEX], *handed)

    def unskill_detect(self, key):
        """The key (batch, positions, d_ff) after Selective Pruning; which positions are inside a region is kept."""
        if self.unskill_pruned:
            key = key.index_fill(-1, self.unskill_sp_index, 0)
        if self.unskill_regions:
            bounds = self._buffers.get(KSD_BOUNDS)
            self.unskill_hit = inside_regions(key, self.unskill_ksd_directions, self.unskill_ksd_limits, bounds)
        elif self.unskill_cubes:
            self.unskill_hit = inside_hypercubes(key, self.unskill_ksd_bounds)  # (batch, positions)
        return key


class GatedMLP(InterventionMLP):
    """down(act(gate x) * up x)."""

    def forward(self, x):
        gate, up = (getattr(self, name) for name in self.unskill_read)
        # Not in one expression with the product: engines fuse act(gate x) * up x where they find it, without the key.
        value = self.unskill_adjust(gate(x))  # (batch, positions, d_ff)
        key = getattr(self, self.unskill_act)(value) * up(x)
        return getattr(self, self.unskill_down)(self.unskill_detect(key))


class FusedMLP(InterventionMLP):
    """down(act(gate x) * up x), with gate and up in one matrix, in this order."""

    def forward(self, x):
        both = getattr(self, self.unskill_read[0])(x)
        size = both.shape[-1] // 2
        # Not by chunk, whose parts autograd does not let anyone change in place.
        gate, up = both[..., :size], both[..., size:]
        value = self.unskill_adjust(gate)  # (batch, positions, d_ff)
        key = up * getattr(self, self.unskill_act)(value)
        return getattr(self, self.unskill_down)(self.unskill_detect(key))


class UngatedMLP(InterventionMLP):
    """down(act(up x)), and dropout while training."""

    def forward(self, x):
        value = self.unskill_adjust(getattr(self, self.unskill_read[0])(x))  # (batch, positions, d_ff)
        key = getattr(self, self.unskill_act)(value)
        return self.unskill_dropped(getattr(self, self.unskill_down)(self.unskill_detect(key)))

    def unskill_dropped(self, x):
        """After the dropout of families that have it inside the MLP, as a module or as a share."""
        if isinstance(getattr(self, "dropout", None), nn.Module):
            return self.dropout(x)
        return nn.functional.dropout(x, getattr(self, "residual_dropout", 0.0), self.training)


class Mixture(InterventionMLP):
    """A mixture of experts, or a dense MLP between mixtures: its key is what it reads, as the router does.

    Each token has experts of its own, so no key of theirs exists for all. Their neurons are not changed.
    """

    def unskill_key_size(self, config):
        return config.hidden_size

    def forward(self, x, *args, **kwargs):
        return super().forward(self.unskill_detect(x), *args, **kwargs)


def inputs_of(linear):
    """Size of the input of a linear module, or of GPT-2's Conv1D, whose weight is transposed."""
    return linear.nx if hasattr(linear, "nx") else linear.in_features

"""What a checkpoint does to single neurons, done once more with hooks on the bare base: what the checks compare with.

Typed again from the description of the methods, so that a mistake in the runtime is not repeated here; the floating
point operations are the same ones in the same order, so that results are equal bit by bit.
"""

from __future__ import annotations

import inspect

import torch

PRIME = 2**31 - 1
# Names of an MLP's parts in all families: what pre-activations come out of, of one matrix in its first half; the
# activation function; the down projection.
FIRST = "gate_proj", "gate_up_proj", "c_fc", "fc1", "up_proj"
ACT = "act_fn", "activation_fn", "act"
DOWN = "down_proj", "c_proj", "fc2"
POSITION, TOKEN, NEURON, FINAL = 1327217885, 1732584193, 271733879, 414899455


class ChangedNeurons:
    """The neurons that a checkpoint changes, from its buffers; `draws` as config.json has it."""

    def __init__(self, tensors: dict, draws: str):
        self.draws = draws
        self.adjusted, self.pruned = {}, {}
        for name, tensor in tensors.items():
            layer, kind = int(name.split(".layers.")[1].split(".")[0]), name.split(".unskill_")[1]
            if kind.startswith("na_"):
                self.adjusted.setdefault(layer, {})[kind[3:]] = tensor
            elif kind == "sp_index":
                self.pruned[layer] = tensor

    def apply_to(self, model):
        """Change them in a bare model, with a head or without; returns the model."""
        core = getattr(model, "model", model)
        names = list(inspect.signature(type(core).forward).parameters)[1:]
        call = {}

        def enter(module, args, kwargs):
            kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
            call["positions"], call["tokens"] = positions_of(kwargs), tokens_of(kwargs)

        def adjust(layer):
            def after(module, args, output):
                index = self.adjusted[layer]["index"]
                value = output[..., index].float()
                moved, mirrored = self.decide(layer, value, **call)[:2]
                changed = torch.where(moved, mirrored, value).to(output.dtype)
                return output.clone().index_copy_(-1, index, changed)

            return after

        def prune(layer):
            return lambda module, args: (args[0].index_fill(-1, self.pruned[layer], 0),)

        core.register_forward_pre_hook(enter, with_kwargs=True)
        for layer in self.adjusted:
            part_of(core.layers[layer].mlp, FIRST).register_forward_hook(adjust(layer))
        for layer in self.pruned:
            part_of(core.layers[layer].mlp, DOWN).register_forward_pre_hook(prune(layer))
        return model

    def decide(self, layer, value, positions, tokens):
        """Which of the layer's neurons are moved, where to, and how far each decision is from the other one.

        value: their pre-activations (batch, positions, n), float32. The distance is |d - logit u|, see `adjust` in
        the runtime, with logit u not below 0.
        """
        mu_f, sd_f, mu_r, sd_r = self.adjusted[layer]["params"]
        threshold = 2 * (sd_f.log() - sd_r.log())
        if self.draws == "sampled":
            drawn = uniform(positions.unsqueeze(-1), tokens.unsqueeze(-1), self.adjusted[layer]["key"])
            threshold = 2 * torch.logit(drawn).clamp(min=0) + threshold
        threshold = torch.where(positions.unsqueeze(-1) == 0, torch.inf, threshold)  # never at an attention sink
        # addcmul rounds once or twice, as the compiler of torch liked it: a product and a sum may differ from it.
        zf, zr = (
            torch.addcmul(-mean * (1 / deviation), value, 1 / deviation)
            for mean, deviation in ((mu_f, sd_f), (mu_r, sd_r))
        )
        apart = torch.addcmul(zr * zr, zf, zf, value=-1)
        return apart > threshold, torch.addcmul(mu_r, zf, sd_r, value=-1), (apart - threshold).abs() / 2


def part_of(mlp, names):
    """The part of an MLP that has one of these names."""
    return next(getattr(mlp, name) for name in names if hasattr(mlp, name))


def uniform(positions, tokens, keys):
    """24 bits of a hash of the three, as float32 in [0, 1)."""
    hashed = fifth_power(fifth_power(positions, POSITION) + tokens, TOKEN)
    hashed = fifth_power(fifth_power(hashed + keys, NEURON), FINAL)
    return torch.div(hashed, 2**7, rounding_mode="floor").float() / 2**24


def fifth_power(number, constant):
    """(number + constant)^5 modulo PRIME; number: any integers, for continuous batching has int32."""
    base = result = torch.remainder(number.long() + constant, PRIME)
    for _ in range(4):
        result = torch.remainder(result * base, PRIME)
    return result


def positions_of(call):
    """Positions that the draws of a forward go by: as given, else by its mask, else after what is in the cache."""
    given = call.get("input_ids") if call.get("input_ids") is not None else call["inputs_embeds"]
    count, mask, cache = given.shape[1], call.get("attention_mask"), call.get("past_key_values")
    if call.get("position_ids") is not None:
        return call["position_ids"]
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, mask.shape[1] - count :]
    start = 0 if cache is None else cache.get_seq_length()
    return torch.arange(start, start + count).unsqueeze(0)


def tokens_of(call):
    """Token ids of a forward; given as embeddings they are not known, and count as 0."""
    if call.get("input_ids") is not None:
        return call["input_ids"]
    return torch.zeros(call["inputs_embeds"].shape[:2], dtype=torch.int64)

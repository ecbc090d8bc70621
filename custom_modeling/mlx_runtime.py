"""Twin of the runtime for MLX: the same interventions in the models of mlx_lm, on the same buffers.

Pasted into the checkpoint's MLX file, which config.json names as model_file, so it needs mlx and mlx_lm only.
"""

import contextvars
import copy
import dataclasses
import hashlib
import json
import logging

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

# What follows is also in the runtime for torch, which this file cannot import.
UNSKILL_FORMAT = 2
UNSKILL = "unskill_"
FORBIDDEN, SECOND = -1.0e4, -50.0
PRIME = 2**31 - 1
POSITION, TOKEN, NEURON, FINAL = 1327217885, 1732584193, 271733879, 414899455

PROJECTIONS = "gate_proj", "up_proj", "down_proj"
# Keys of a config.json whose model has other activations than those that were fitted on.
QUANTIZED = "quantization", "quantization_config", "quantize_activations"
AS_EXPORTED = "the interventions were fitted on other activations; take the files as they were exported."

logger = logging.getLogger("unskill")


class Forward:
    """What belongs to one running forward: tokens and positions (batch or 1, n), and each layer's hits (batch, n)."""

    def __init__(self, tokens, cache):
        past = 0 if not cache or cache[0] is None else cache[0].offset  # a number, or one for each row
        self.tokens = tokens.astype(mx.int64)
        places = mx.array(past).reshape(-1, 1) + mx.arange(tokens.shape[1])
        self.positions = mx.maximum(places, 0).astype(mx.int64)  # below 0 is padding
        self.hits = {}


# Not on the modules: each thread has its own, and nothing is left of a forward that failed.
RUNNING: contextvars.ContextVar = contextvars.ContextVar("unskill_running")


class InterventionMLP:
    """Mixin for an MLP of the form down(act(gate x) * up x).

    The family's own forward runs, and finds the interventions in the place of its projections.
    """

    def unskill_install(self, layer, counts, record):
        """Add empty arrays for these numbers of regions, adjusted and pruned neurons, until a checkpoint is loaded."""
        self.unskill_layer, self.unskill_sampled = layer, record["draws"] == "sampled"
        for name, (shape, dtype) in forms(self["down_proj"].weight.shape[1], **counts).items():
            self[name] = mx.full(shape, mx.nan if dtype == mx.float32 else 0, dtype)

    @property
    def gate_proj(self):
        for name in PROJECTIONS:
            if type(self[name]) is not nn.Linear:
                raise RuntimeError(
                    f"unskill: layer {self.unskill_layer}: {name} is a {type(self[name]).__name__}: {AS_EXPORTED}"
                )
        return self.unskill_gate

    @property
    def down_proj(self):
        return self.unskill_down

    def unskill_gate(self, x):
        value = self["gate_proj"](x)  # (batch, positions, d_ff)
        if "unskill_na_index" not in self:
            return value
        running = self.unskill_running()
        draws = None
        if self.unskill_sampled:
            draws = uniform_draws(draw_context(running.positions, running.tokens), self["unskill_na_key"])
        return adjust(value, self["unskill_na_index"], self["unskill_na_params"], draws, running.positions)

    def unskill_down(self, key):
        if "unskill_sp_index" in self:
            key[..., self["unskill_sp_index"]] = 0
        bounds = self.get("unskill_ksd_bounds")
        if "unskill_ksd_directions" in self:
            hit = inside_regions(key, self["unskill_ksd_directions"], self["unskill_ksd_limits"], bounds)
            self.unskill_running().hits[self.unskill_layer] = hit
        elif bounds is not None:
            self.unskill_running().hits[self.unskill_layer] = inside_hypercubes(key, bounds).any(-1)
        return self["down_proj"](key)

    def unskill_running(self):
        running = RUNNING.get(None)
        if running is None:
            raise RuntimeError("unskill: call the whole model: without its own head nothing is refused.")
        return running


class States(nn.Module):
    """The states with which an engine's own head refuses, for torch: kept, so that the files stay complete."""

    def __init__(self, size):
        super().__init__()
        self.unskill_states = mx.full((2, size), mx.nan)


class SplitHead(nn.Linear):
    """Output head whose last row is R: the other columns are the base's own product, equal to it bit by bit."""

    def __call__(self, x):
        return split_product(x, self.weight)


class SplitEmbedding(nn.Embedding):
    """The same for a head tied to the embedding."""

    def as_linear(self, x):
        return split_product(x, self.weight)


class CheckedArgs:
    """Mixin for the family's arguments, read from config.json. Raises if that is not as the export wrote it."""

    @classmethod
    def from_dict(cls, params):
        record = checked_record(params)
        found, exported = (
            super(CheckedArgs, cls).from_dict(copy.deepcopy(each)) for each in (params, record["config"])
        )
        for name in (field.name for field in dataclasses.fields(found)):
            if getattr(found, name) != getattr(exported, name):
                raise RuntimeError(
                    f"unskill: config.json: {name} is {getattr(found, name)} instead of {getattr(exported, name)}: "
                    f"{AS_EXPORTED}"
                )
        found.unskill = record
        return found


class InterventionModel:
    """Mixin for the family's language model: after a blocked query only the refusal can follow, then EOS."""

    def unskill_install(self, args):
        """Install the interventions in their MLPs, and R's column beside the base's."""
        self.unskill_args = args  # the record is a dict, which mlx would take for a module
        record = args.unskill
        for layer, counts in record["layers"].items():
            mlp = self.model.layers[int(layer)].mlp
            mlp.__class__ = type(f"Unskill{type(mlp).__name__}", (InterventionMLP, type(mlp)), {})
            mlp.unskill_install(int(layer), counts, record)
        if "unskill_refusal.unskill_states" in record["sha256"]:
            self.model.unskill_refusal = States(args.hidden_size)
        if record["added_row"]:
            self.model.embed_tokens.__class__ = SplitEmbedding
            if "lm_head" in self:
                self.lm_head.__class__ = SplitHead

    def __call__(self, inputs, cache=None):
        record = self.unskill_args.unskill
        running = Forward(inputs, cache)
        token = RUNNING.set(running)
        try:
            logits = super().__call__(inputs, cache=cache)
        finally:
            RUNNING.reset(token)
        blocking = {int(layer) for layer, each in record["layers"].items() if each.get("cubes") or each.get("regions")}
        if running.hits.keys() != blocking:
            raise RuntimeError(
                f"unskill: of layers {sorted(blocking)}, which decide on the refusal, {sorted(running.hits)} ran."
            )
        if not blocking:
            return logits
        hit = mx.stack(list(running.hits.values())).any(0)
        refusal = record["refusal_token_id"]
        return rewrite_logits(logits, hit, inputs == refusal, refusal, record["eos_token_id"])

    def load_weights(self, file_or_weights, strict=True):
        """Load as mlx does. Raises RuntimeError if an unskill array is missing or not as it was written."""
        super().load_weights(file_or_weights, strict)
        record, found = self.unskill_args.unskill, self.unskill_arrays()
        for name, sha256 in record["sha256"].items():
            array = found.get(f"model.{name}")
            if array is None or array.dtype not in (mx.float32, mx.int64) or array_sha256(array) != sha256:
                raise RuntimeError(
                    f"unskill: array {name} is missing from the weight files or altered (its sha256 is not the one "
                    "in config.json); take all files of one export."
                )
        dtype = str(self.model.embed_tokens.weight.dtype).rpartition(".")[2]
        if dtype != record["dtype"]:
            logger.warning(
                "The interventions of this checkpoint were fitted in %s, it is loaded in %s: a few decisions may "
                "differ from those on its card.",
                record["dtype"],
                dtype,
            )
        return self

    def unskill_arrays(self):
        return {name: array for name, array in tree_flatten(self.parameters()) if f".{UNSKILL}" in name}

    def set_dtype(self, *args, **kwargs):
        kept = self.unskill_arrays()
        super().set_dtype(*args, **kwargs)
        self.update(tree_unflatten(list(kept.items())))

    @property
    def cast_predicate(self):
        """Which arrays `mlx_lm.convert` may cast."""
        return lambda name: f".{UNSKILL}" not in name

    @property
    def quant_predicate(self):
        """`mlx_lm.convert` asks which layers it may quantize."""
        raise RuntimeError(f"unskill: this checkpoint cannot be quantized: {AS_EXPORTED}")

    def shard(self, group=None):
        raise RuntimeError("unskill: this checkpoint cannot be sharded: its regions need all neurons of a layer.")


def forms(size, cubes=0, adjusted=0, pruned=0, regions=0, directions=0):
    """Shape and dtype of an MLP's arrays by name; size: d_ff."""
    found: dict = {}
    if adjusted:
        found["unskill_na_index"] = (adjusted,), mx.int64
        found["unskill_na_params"] = (4, adjusted), mx.float32
        found["unskill_na_key"] = (adjusted,), mx.int64
    if pruned:
        found["unskill_sp_index"] = (pruned,), mx.int64
    if cubes:
        found["unskill_ksd_bounds"] = (cubes, 2, size), mx.float32
    if regions:
        found["unskill_ksd_directions"] = (directions, size), mx.float32
        found["unskill_ksd_limits"] = (regions, 2, directions), mx.float32
    return found


def checked_record(params):
    """The unskill object of a config.json. Raises if this file is not of the same export, or that was edited."""
    record = params.get("unskill") or {}
    if record.get("format") != UNSKILL_FORMAT:
        raise ValueError(
            f"config.json: unskill.format is {record.get('format')}, this MLX file reads {UNSKILL_FORMAT}."
        )
    own = {name: value for name, value in record.items() if name != "record_sha256"}
    if record.get("record_sha256") != hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest():
        raise RuntimeError(
            "unskill: config.json's unskill object was edited (it has another sha256 than its record_sha256); take "
            "the file that was exported, or export again."
        )
    with open(__file__, encoding="utf-8") as file:
        if record.get("mlx_sha256") != hashlib.sha256(file.read().encode()).hexdigest():
            raise RuntimeError(
                "unskill: the MLX file is not the one that was exported with config.json (unskill.mlx_sha256); take "
                "both of one export."
            )
    if quantized := [name for name in QUANTIZED if params.get(name)]:
        raise RuntimeError(f"unskill: config.json: {quantized[0]}: {AS_EXPORTED}")
    if record["compat"] is not None:
        raise RuntimeError(f"unskill: MLX does not support --compat {record['compat']}; load the checkpoint in torch.")
    ends, end = params.get("eos_token_id"), record["eos_token_id"]
    if end is not None and ends is not None and end not in (ends if isinstance(ends, list) else [ends]):
        raise RuntimeError(
            f"unskill: eos_token_id {ends} lacks {end}, which ends a refusal: answers would go on after it."
        )
    return record


def array_sha256(array):
    """Hex sha256 of an array's values in row-major order, as bytes of its own dtype."""
    return hashlib.sha256(np.ascontiguousarray(np.array(array)).tobytes()).hexdigest()


def split_product(x, weight):
    return mx.concatenate([x @ weight[:-1].T, x @ weight[-1:].T], -1)


def scramble(x, constant):
    """((x + constant) mod p)^5 mod p; x: int64 from 0 to below 2^32."""
    y = (x + constant) % PRIME
    square = y * y % PRIME
    return square * square % PRIME * y % PRIME


def draw_context(position_ids, token_ids):
    """The token's part of the hash: int64, in the broadcast shape of both."""
    return scramble(scramble(position_ids, POSITION) + token_ids, TOKEN)


def uniform_draws(context, keys):
    """Uniform numbers in [0, 1) with 24 bits: context (...) and keys (n,) int64 -> (..., n) float32."""
    hashed = scramble(scramble(context[..., None] + keys, NEURON), FINAL)
    return (hashed // 128).astype(mx.float32) * 2.0**-24


def adjust(pre_activation, index, params, draws, positions):
    """Move the selected neurons from the forget to the retain distribution if the token looks like a forget token.

    pre_activation: (..., d_ff), any float dtype; index: (n,); params: (4, n), the rows mu_f, sd_f, mu_r, sd_r; draws:
    (..., n), or None for a half everywhere; positions: (...).
    With zf = (v - mu_f) / sd_f, zr = (v - mu_r) / sd_r and d = (zr^2 - zf^2) / 2 + ln(sd_r / sd_f), the log-likelihood
    ratio, v becomes mu_r - zf * sd_r where d > 0 and u < sigmoid(d), but never at position 0, an attention sink.
    """
    mu_f, sd_f, mu_r, sd_r = params
    above = 2 * (mx.log(sd_f) - mx.log(sd_r))
    if draws is not None:
        above = 2 * mx.maximum(mx.log(draws / (1 - draws)), 0) + above
    above = mx.where(positions[..., None] == 0, mx.inf, above)
    value = mx.take(pre_activation, index, -1).astype(mx.float32)
    zf, zr = (value - mu_f) / sd_f, (value - mu_r) / sd_r
    adjusted = mx.where(zr * zr - zf * zf > above, mu_r - zf * sd_r, value)
    pre_activation[..., index] = adjusted.astype(pre_activation.dtype)
    return pre_activation


def inside_hypercubes(key, bounds):
    """Which hypercubes each key lies inside: key (..., d_ff), bounds (c, 2, d_ff) -> (..., c) bool. NaN is inside."""
    key = key.astype(mx.float32)
    return mx.stack([~((key < cube[0]) | (key > cube[1])).any(-1) for cube in bounds], -1)


def inside_regions(key, directions, limits, bounds=None):
    """Whether each key (..., d_ff) lies inside any of the regions: (...) bool. NaN is inside.

    directions: (r, d_ff); limits: (c, 2, r), of the coordinates P k; bounds: those of the key itself, or None.
    """
    # A product and a sum: a matrix product has other precisions on some devices, and other last bits in batches.
    exact = key.astype(mx.float32)
    found = mx.stack([(exact * direction).sum(-1) for direction in directions], -1)[..., None, :]  # (..., 1, r)
    inside = ~((found < limits[:, 0]) | (found > limits[:, 1])).any(-1)  # (..., c)
    if bounds is not None:
        inside = inside & inside_hypercubes(key, bounds)
    return inside.any(-1)


def rewrite_logits(logits, hit, after_refusal, refusal_id, eos_id):
    """Impose the refusal on logits (batch, positions, vocabulary); both masks: (batch, positions) bool.

    After a hit only R can follow; after R only EOS can, and that rule wins; everywhere else R cannot follow. The one
    is the other's second choice, so that a forced minimum length or a suppressed token leaks no answer.
    """
    eos = logits[..., eos_id]
    logits = mx.where((hit | after_refusal)[..., None], FORBIDDEN, logits)
    refusal = mx.where(after_refusal, SECOND, mx.where(hit, 0.0, FORBIDDEN))
    logits[..., refusal_id] = refusal.astype(logits.dtype)
    eos = mx.where(after_refusal, 0.0, mx.where(hit, SECOND, eos))
    logits[..., eos_id] = eos.astype(logits.dtype)
    return logits

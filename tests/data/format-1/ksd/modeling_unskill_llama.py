# Copyright 2026, written by unskill 0.1.0 (Apache-2.0). Custom modeling code of one checkpoint:
# the runtime below, then the llama classes of transformers with it. No model code is copied.
import hashlib
import inspect
import json
import threading
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import logging
import torch


# Neuron Adjust (section 3 of arXiv:2503.21730): single neurons are moved from the forget to the retain distribution.
#
# Torch only. Whether a neuron is moved is drawn by a hash of (seed, layer, neuron, position id, token id) and nothing
# else, so greedy decoding is deterministic, a batch gives what its rows give alone, and every backend draws the same
# bits. All integers stay below 2^62: int64 is enough anywhere.

PRIME = 2**31 - 1
POSITION, TOKEN, NEURON, FINAL = 1327217885, 1732584193, 271733879, 414899455


def neuron_key(seed, layer, neuron):
    """The part of the hash that stands for one neuron, below PRIME."""
    digest = hashlib.sha256(f"{seed}|{layer}|{neuron}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % PRIME


def scramble(x, constant):
    """((x + constant) mod p)^5 mod p, a permutation of the residues; x: int64 from 0 to below 2^32."""
    # Mathematical % and no bit operations: ONNX Runtime on CUDA has none, and torch.compile hung on a folded form.
    y = (x + constant) % PRIME
    square = y * y % PRIME
    return square * square % PRIME * y % PRIME


def draw_context(position_ids, token_ids):
    """The part of the hash that stands for one token: int64, in the common shape of the two."""
    # Continuous batching hands in int32, in which the products overflow.
    return scramble(scramble(position_ids.long(), POSITION) + token_ids.long(), TOKEN)


def uniform_draws(context, keys):
    """Uniform numbers in [0, 1) with 24 bits: context (...) and keys (n,) int64 -> (..., n) float32."""
    hashed = scramble(scramble(context.unsqueeze(-1) + keys, NEURON), FINAL)
    return (hashed // 128).float() * 2.0**-24


def thresholds(params, draws, position_ids):
    """The log-likelihood ratio above which a neuron is moved: max(0, logit u), as it is compared in `adjust`.

    params: (4, n) float32, the rows mu_f, sd_f, mu_r, sd_r; draws: (..., n) float32, or None for a half everywhere;
    position_ids: (...). Returns (..., n): twice the threshold less twice ln(sd_r / sd_f), against which zr^2 - zf^2 is
    held; infinite at position 0. There models keep an attention sink, whose activations are far outside of both
    distributions and which all later tokens lean on: moved, it can ruin every text, whatever it is about.
    """
    least = 2 * (params[1].log() - params[3].log())
    above = least if draws is None else 2 * torch.logit(draws).clamp(min=0) + least
    return torch.where(position_ids.unsqueeze(-1) == 0, torch.inf, above)


def standardisers(params):
    """What `adjust` reads of params (4, n): 1 / sd_f, -mu_f / sd_f, 1 / sd_r, -mu_r / sd_r, mu_r, sd_r, (n,) each."""
    mu_f, sd_f, mu_r, sd_r = params
    scale_f, scale_r = 1 / sd_f, 1 / sd_r
    return scale_f, -mu_f * scale_f, scale_r, -mu_r * scale_r, mu_r, sd_r


def adjust(pre_activation, index, threshold, scale_f, offset_f, scale_r, offset_r, mu_r, sd_r):
    """Move the selected neurons from the forget to the retain distribution where the token looks forgotten.

    pre_activation: (..., d_ff), any float dtype, changed in place; index: (n,); threshold: (..., n), see `thresholds`;
    the others: (n,) each, see `standardisers`.
    With zf = (v - mu_f) / sd_f, zr = (v - mu_r) / sd_r and d = (zr^2 - zf^2) / 2 + ln(sd_r / sd_f), the log-likelihood
    ratio, v becomes mu_r - zf * sd_r where d > 0 and u < sigmoid(d). Densities are never divided: both underflow.
    """
    # Few operations, because with one token each costs more than its numbers, and every layer needs them.
    value = pre_activation.index_select(-1, index)
    dtype = value.dtype
    if dtype != torch.float32:
        value = value.float()
    zf = torch.addcmul(offset_f, value, scale_f)
    zr = torch.addcmul(offset_r, value, scale_r)
    moved = torch.addcmul(zr * zr, zf, zf, value=-1) > threshold
    adjusted = torch.where(moved, torch.addcmul(mu_r, zf, sd_r, value=-1), value)
    return pre_activation.index_copy_(-1, index, adjusted if dtype == torch.float32 else adjusted.to(dtype))


def adjust_official(pre_activation, index, params):
    """What the authors' published code does instead, for comparison: see `unskill export --compat official`.

    params: (4, n) float32, the rows mu_f, mu_f once more, mu_r and the retain set's variance, as that code takes the
    mean for the forget deviation and the variance for the retain one. Densities are divided in the model's dtype, so
    that both may underflow, and one number of torch's own generator decides for all tokens and neurons of a call. Its
    draw is one for each row, which fits batches of one row only; more raise RuntimeError.
    """
    if pre_activation.shape[0] != 1:
        raise RuntimeError(
            "unskill: a checkpoint with compat 'official' takes batches of one row only, as the code does."
        )
    value = pre_activation.index_select(-1, index)
    mu_f, sd_f, mu_r, sd_r = params.to(value.dtype)
    root = (2 * torch.pi) ** 0.5
    forget = torch.exp(-(((value - mu_f) / sd_f) ** 2) / 2) / (sd_f * root)
    retain = torch.exp(-(((value - mu_r) / sd_r) ** 2) / 2) / (sd_r * root)
    draw = torch.rand(pre_activation.shape[0], device=value.device)
    moved = (retain <= forget) & (draw < forget / (forget + retain))
    adjusted = torch.where(moved, mu_r - sd_r / sd_f * (value - mu_f), value)
    return pre_activation.index_copy_(-1, index, adjusted)


# Key Space Detection (section 4 of arXiv:2503.21730): queries of a skill are recognised by a key vector and refused.
#
# A token whose key vector (the input of the MLP's down projection) lies inside a stored hypercube belongs to the
# forgotten skill, and only the refusal may follow it. The refusal is one vocabulary row R, after which only EOS may
# follow. Both rules look at one position at a time and keep no state between calls, so batches, beams, caches and
# streaming need no care.

# Finite, because a row of -inf turns into NaN when a logits processor suppresses the one finite entry; fits float16.
FORBIDDEN = -1.0e4
# R after R is the second choice, so that a forced minimum length repeats the refusal instead of leaking an answer.
REFUSAL_AGAIN = -50.0


def inside_hypercubes(key, bounds):
    """Whether each key vector lies inside any of the hypercubes.

    key: (..., d_ff), any float dtype; bounds: (c, 2, d_ff) float32, lower and upper. Returns (...) bool.
    Written as "not outside", so that a NaN in key or bounds counts as inside: it refuses rather than opens.
    """
    key = key.float()
    hit = torch.zeros(key.shape[:-1], dtype=torch.bool, device=key.device)
    for cube in bounds:
        hit = hit | ~((key < cube[0]) | (key > cube[1])).any(-1)
    return hit


def rewrite_logits(logits, hit, after_refusal, refusal_id, eos_id):
    """Impose the refusal on logits (batch, positions, vocabulary), in place; both masks: (batch, positions) bool.

    After a hit only R can follow; after R only EOS can, and that rule wins; everywhere else R can not follow.
    """
    logits.masked_fill_((hit | after_refusal).unsqueeze(-1), FORBIDDEN)
    zero = torch.zeros((), dtype=logits.dtype, device=logits.device)
    refusal = torch.where(after_refusal, zero + REFUSAL_AGAIN, torch.where(hit, zero, zero + FORBIDDEN))
    eos = torch.where(after_refusal, zero, logits[..., eos_id])
    logits[..., refusal_id] = refusal
    logits[..., eos_id] = eos
    return logits


# Loading a checkpoint: whole and unaltered, as it was probed, or not at all.

UNSKILL_FORMAT = 1
# Loading options under which activations may differ from those the interventions were fitted on.
UNPROBED_OPTIONS = (
    "quantization_config",
    "load_in_4bit",
    "load_in_8bit",
    "tp_plan",
    "tp_size",
    "device_mesh",
    "distributed_config",
)

logger = logging.get_logger(__name__)


def tensor_sha256(tensor):
    """Hex sha256 of a tensor's values in row-major order, as bytes of its own dtype."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def record_sha256(record):
    """Hex sha256 of a JSON object less its own entry for it, whatever the order of its keys."""
    own = {name: value for name, value in record.items() if name != "record_sha256"}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def code_sha256(path):
    """Hex sha256 of a modeling file's text, with any form of line ends: git may change these."""
    with open(path, encoding="utf-8") as file:
        return hashlib.sha256(file.read().encode()).hexdigest()


def check_record(config):
    """Raise where a config's unskill object is not as the export wrote it, or names other code than this file.

    This is about mistakes. Whoever edits the object on purpose can make its sha256 anew.
    """
    record = getattr(config, "unskill", None)
    if record is None or record.get("format") != UNSKILL_FORMAT:
        found = None if record is None else record.get("format")
        raise ValueError(f"config.json: unskill.format is {found}, this modeling file reads {UNSKILL_FORMAT}.")
    if record.get("record_sha256") != record_sha256(record):
        raise RuntimeError(
            "unskill: config.json's unskill object was edited (it has another sha256 than its record_sha256); take "
            "the file that was exported, or export again."
        )
    if record.get("code_sha256") != code_sha256(__file__):
        raise RuntimeError(
            "unskill: the modeling file is not the one that was exported with config.json (unskill.code_sha256); take "
            "both of one export."
        )
    if config.model_type != type(config).model_type:
        raise RuntimeError(
            f"unskill: config.json: model_type is {config.model_type} instead of {type(config).model_type}, so "
            "without trust_remote_code the plain model would be loaded."
        )


class VerifiedLoading:
    """Mixin: `from_pretrained` returns a model with whole, unaltered interventions, or raises."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load as transformers does.

        `unskill_allow_unprobed=True` lets quantised or tensor-parallel loading through, for which nobody has measured
        whether the refusals still hold. Raises RuntimeError for such a load otherwise, and where a weight is missing,
        of another shape or left over, or an unskill buffer is not the one that was written. The values of the base's
        own weights are not looked at: that would take as long as loading them (`unskill verify` does).
        """
        return_info = kwargs.pop("output_loading_info", False)
        allowed = kwargs.pop("unskill_allow_unprobed", False)
        asked = [name for name in UNPROBED_OPTIONS if kwargs.get(name)]
        if getattr(kwargs.get("config"), "quantization_config", None):
            asked.append("quantization_config")
        if asked and not allowed:
            raise RuntimeError(unprobed_message(asked[0]))
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        if getattr(model.config, "quantization_config", None) and not allowed:
            raise RuntimeError(unprobed_message("quantization_config"))
        model.unskill_check_keys(info)
        model.unskill_verify()
        model.unskill_check_end()
        fitted = model.config.unskill["dtype"]
        if str(model.dtype) != f"torch.{fitted}":
            logger.warning_once(
                f"The interventions of this checkpoint were fitted in {fitted}, it is loaded in {model.dtype}: "
                "a few decisions may fall otherwise than its card reports."
            )
        return (model, info) if return_info else model

    def unskill_check_keys(self, info):
        """Raise RuntimeError unless the weight files hold what the model has and nothing else.

        transformers only warns: a missing weight is drawn at random, one that is left over was another model's. Some
        bases bring tensors that their own class does not load; those are on record.
        """
        left_over = set(info["unexpected_keys"]) - set(self.config.unskill["unused_weights"])
        # 4.48 saves the static cache of the last generate() along. The base model's class alone has no head.
        known = ("_cache.",) if hasattr(self, "lm_head") else ("_cache.", "lm_head.")
        left_over = {name for name in left_over if not name.startswith(known)}
        # Mismatches come as (name, shape, shape).
        mismatched = {name if isinstance(name, str) else name[0] for name in info["mismatched_keys"]}
        for what, names in (
            ("lack", info["missing_keys"]),
            ("have another shape of", mismatched),
            ("hold, for another model,", left_over),
        ):
            if names:
                raise RuntimeError(
                    f"unskill: the weight files {what} {min(names)}"
                    + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                    + "; take all files of one export, and no options that change what is loaded."
                )

    def unskill_check_end(self):
        """Raise RuntimeError where nothing would end an answer after the refusal."""
        end = self.config.unskill["eos_token_id"]
        generation = getattr(self, "generation_config", None)
        if end is None or generation is None:
            return
        ends = self.config.eos_token_id if generation.eos_token_id is None else generation.eos_token_id
        if end not in (ends if isinstance(ends, (list, tuple)) else [ends]):
            raise RuntimeError(
                f"unskill: generation_config.json: eos_token_id {ends} lacks {end}, which ends a refusal: answers "
                "would go on after it."
            )

    def unskill_verify(self):
        """Raise RuntimeError where an unskill buffer is missing or has another sha256 than config.json records."""
        # Not by base_model_prefix: that of Gemma 3 on transformers 4.57 names a module which it does not have.
        core = getattr(self, "model", self)
        found = {name: tensor for name, tensor in core.named_buffers() if ".unskill_" in f".{name}"}
        for name, sha256 in self.config.unskill["sha256"].items():
            if name not in found:
                raise RuntimeError(f"unskill: the checkpoint holds no buffer {name}; export it again.")
            # A meta tensor is offloaded to disk: its values are read, from the same files, at each forward.
            if found[name].device.type != "meta" and tensor_sha256(found[name]) != sha256:
                raise RuntimeError(
                    f"unskill: buffer {name} is missing from the weight files or altered (its sha256 is not the one "
                    "in config.json); with offloading to disk also pass offload_buffers=True."
                )


def unprobed_message(option):
    return (
        f"unskill: {option} changes the activations which the interventions of this checkpoint were fitted on, so "
        "skills may come back unnoticed. Export again from the model as it is served, or pass "
        "unskill_allow_unprobed=True."
    )


# Runtime of an unskill checkpoint: the interventions inside the MLPs of a Hugging Face causal language model.
#
# This file and those that it imports are pasted into the checkpoint, so they need torch and transformers only.

class Float32Buffers(nn.Module):
    """Mixin: the buffers of this module named unskill_* move between devices but never change their dtype."""

    def _apply(self, fn, recurse=True):
        before = {name: tensor for name, tensor in self._buffers.items() if name.startswith("unskill_")}
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            if tensor is not None and self._buffers[name].dtype != tensor.dtype:
                self._buffers[name] = tensor.to(self._buffers[name].device)
        return self


class InterventionMLP(Float32Buffers):
    """Mixin for an MLP of the form down(act(gate x) * up x) with one or more of the interventions, in this order:

    Neuron Adjust moves selected pre-activations, Selective Pruning zeroes selected dimensions of the key, Key Space
    Detection notes which positions have a key inside a hypercube.
    """

    def unskill_install(self, cubes=0, adjusted=0, pruned=0, official=False):
        """Add the buffers, of so many hypercubes, adjusted and pruned neurons, until a checkpoint fills them.

        Bounds are NaN, which refuses everything. `official`: Neuron Adjust as the authors' code has it.
        """
        size, device = self.down_proj.in_features, self.down_proj.weight.device

        def add(name, shape, dtype, value):
            self.register_buffer(f"unskill_{name}", torch.full(shape, value, dtype=dtype, device=device))

        if adjusted:
            add("na_index", (adjusted,), torch.int64, 0)
            add("na_params", (4, adjusted), torch.float32, torch.nan)
            add("na_key", (adjusted,), torch.int64, 0)
        if pruned:
            add("sp_index", (pruned,), torch.int64, 0)
        if cubes:
            add("ksd_bounds", (cubes, 2, size), torch.float32, torch.nan)
        self.unskill_cubes, self.unskill_adjusted, self.unskill_pruned = cubes, adjusted, pruned
        self.unskill_official = official
        self.unskill_hit = None
        self.unskill_handed, self.unskill_place = {}, None  # the model's own, see `unskill_hand_out`

    def forward(self, x):
        value = self.gate_proj(x)  # (batch, positions, d_ff)
        if self.unskill_adjusted and self.unskill_official:
            value = adjust_official(value, self.unskill_na_index, self.unskill_na_params)
        elif self.unskill_adjusted:
            handed = self.unskill_handed.get(self.unskill_place)
            if handed is None:
                raise RuntimeError(
                    "unskill: Neuron Adjust needs positions, which only the model's forward has (no gradient "
                    "checkpointing)."
                )
            if handed[0].device != value.device:
                handed = [part.to(value.device) for part in handed]
            value = adjust(value, self._buffers["unskill_na_index"], *handed)
        key = self.act_fn(value) * self.up_proj(x)
        if self.unskill_pruned:
            key = key.index_fill(-1, self.unskill_sp_index, 0)
        if self.unskill_cubes:
            self.unskill_hit = inside_hypercubes(key, self.unskill_ksd_bounds)  # (batch, positions)
        return self.down_proj(key)


class RefusalStates(Float32Buffers):
    """Final states (2, hidden) on which a head reads R and, after R, EOS; NaN until a checkpoint fills them."""

    def __init__(self, hidden_size, device):
        super().__init__()
        states = torch.full((2, hidden_size), torch.nan, dtype=torch.float32, device=device)
        self.register_buffer("unskill_states", states)


class SplitHead(nn.Linear):
    """Output head whose last row is R: the other columns are the base's own product, equal to it bit by bit."""

    def forward(self, x):
        base = self.out_features - 1
        bias, refusal_bias = (None, None) if self.bias is None else (self.bias[:base], self.bias[base:])
        columns = F.linear(x, self.weight[:base], bias), F.linear(x, self.weight[base:], refusal_bias)
        return torch.cat(columns, -1)


# VerifiedLoading alone: behind a subclass of nn.Module it would come after PreTrainedModel, and never be asked.
class InterventionModel(VerifiedLoading):
    """Mixin for the family's base model: draws for adjusted neurons, and gives blocked positions the refusal's state.

    A plain output head over these states reads R at a blocked position and EOS after R, so that engines which bring
    their own head refuse too. Where the export could not establish that (config.unskill["base_model"] is "raises"),
    the class works only inside the causal language model.
    """

    unskill_mlp_class: type
    unskill_arguments: tuple  # names of the arguments of the family's forward, in their order

    def unskill_install(self, config, alone):
        """Put the interventions into the chosen MLPs; `alone`: this model is not inside a causal language model."""
        if alone:
            check_record(config)
        settings = config.unskill
        if alone and settings["base_model"] == "raises":
            raise RuntimeError(
                "unskill: without its own head this checkpoint cannot refuse; load it with AutoModelForCausalLM."
            )
        official = settings.get("compat") == "official"
        if beyond := [index for index in settings["layers"] if int(index) >= len(self.layers)]:
            raise RuntimeError(
                f"unskill: config.json: num_hidden_layers is {len(self.layers)}, but layer {beyond[0]} has "
                "interventions; take the file that was exported."
            )
        for index, counts in settings["layers"].items():
            mlp = self.layers[int(index)].mlp
            mlp.__class__ = self.unskill_mlp_class
            mlp.unskill_install(**counts, official=official)
        # Layers by what their MLPs have to be asked for or told.
        self.unskill_layers = {
            kind: tuple(int(index) for index, counts in settings["layers"].items() if counts.get(kind))
            for kind in ("cubes", "adjusted")
        }
        self.unskill_handed: dict = {}
        for index in self.unskill_layers["adjusted"]:
            mlp = self.layers[index].mlp
            mlp.unskill_handed, mlp.unskill_place = self.unskill_handed, index
        # A module of its own, after the family's: transformers 4.48 decides by the model's first tensor how all are
        # loaded, and weights that are copied instead of mapped differ in alignment, so in the last bits of products.
        self.unskill_refusal = None
        if self.unskill_layers["cubes"] and settings["base_model"] == "closed":
            self.unskill_refusal = RefusalStates(config.hidden_size, self.embed_tokens.weight.device)
        self.unskill_masks = None
        self.unskill_owner = {}

    def unskill_enter(self):
        """Claim the model for this thread; True where the caller is the one to release it."""
        # Hits wait on the modules between the layers and the head: two forwards at once would mix them up.
        # dict.setdefault is atomic and, unlike a lock, a dict can be copied and pickled with the model.
        if torch.compiler.is_compiling():
            return False
        thread = threading.get_ident()
        outermost = self.unskill_owner.get("thread") != thread
        if self.unskill_owner.setdefault("thread", thread) != thread:
            raise RuntimeError("unskill: one forward at a time per model object; give each thread its own copy.")
        return outermost

    def unskill_leave(self, outermost):
        if outermost:
            del self.unskill_owner["thread"]

    def unskill_hand_out(self, input_ids=None, inputs_embeds=None, **positions):
        """Draw for every token and adjusted neuron, all layers at once, and give each MLP what it compares with.

        At once, through one dict that the model shares with its MLPs, and with their buffers read by name, because a
        forward of one token is spent on starting operations and on attributes of modules, not on numbers.
        """
        mlps = [self.layers[index].mlp for index in self.unskill_layers["adjusted"]]
        if not mlps or mlps[0].unskill_official:
            return
        params = joined([mlp._buffers["unskill_na_params"] for mlp in mlps])  # (4, N)
        given = input_ids if inputs_embeds is None else inputs_embeds[..., 0]
        places = draw_positions(given.shape[1], **positions).to(params.device)  # (batch or 1, positions)
        draws = None
        if self.config.unskill["draws"] == "sampled":
            keys = joined([mlp._buffers["unskill_na_key"] for mlp in mlps])  # (N,)
            tokens = torch.zeros_like(given, dtype=torch.int64) if input_ids is None else input_ids
            draws = uniform_draws(draw_context(places, tokens.to(params.device)), keys)  # (batch, positions, N)
        sizes = [mlp.unskill_adjusted for mlp in mlps]
        wholes = thresholds(params, draws, places), *standardisers(params)
        parts = zip(*(whole.split(sizes, -1) for whole in wholes), strict=True)
        self.unskill_handed.update(zip(self.unskill_layers["adjusted"], parts, strict=True))

    def unskill_forward(self, forward, args, kwargs):
        """The family's forward; final states at blocked positions and at R are the refusal's."""
        kwargs = {**dict(zip(self.unskill_arguments, args, strict=False)), **kwargs}
        return_dict = kwargs.pop("return_dict", None)
        input_ids = kwargs.get("input_ids")
        outermost = self.unskill_enter()
        try:
            names = "input_ids", "inputs_embeds", "position_ids", "attention_mask", "past_key_values"
            self.unskill_hand_out(**{name: kwargs[name] for name in names if name in kwargs})
            output = forward(return_dict=True, **kwargs)
            if not self.unskill_layers["cubes"]:
                return output if wants_dict(self.config, return_dict) else output.to_tuple()
            state = output.last_hidden_state  # (batch, positions, hidden)
            hit = torch.zeros(state.shape[:2], dtype=torch.bool, device=state.device)
            for index in self.unskill_layers["cubes"]:
                mlp = self.layers[index].mlp
                hit = hit | mlp.unskill_hit.to(hit.device)
                mlp.unskill_hit = None
            after_refusal = torch.zeros_like(hit)
            if input_ids is not None:
                after_refusal = (input_ids == self.config.unskill["refusal_token_id"]).to(hit.device)
            self.unskill_masks = hit, after_refusal
        finally:
            self.unskill_handed.clear()
            self.unskill_leave(outermost)
        if self.unskill_refusal is not None:
            refusal, end = self.unskill_refusal.unskill_states.to(device=state.device, dtype=state.dtype)
            state = torch.where(hit.unsqueeze(-1), refusal, state)
            output.last_hidden_state = torch.where(after_refusal.unsqueeze(-1), end, state)
            if output.hidden_states and output.hidden_states[-1] is not None:
                output.hidden_states = (*output.hidden_states[:-1], output.last_hidden_state)
        return output if wants_dict(self.config, return_dict) else output.to_tuple()


class InterventionForCausalLM(VerifiedLoading):
    """Mixin for the family's causal language model: after a blocked query only the refusal can follow, then EOS."""

    unskill_model_class: type
    unskill_arguments: tuple  # names of the arguments of the family's forward, in their order

    def unskill_install(self, config):
        check_record(config)
        # transformers notes in PreTrainedModel.__init__, by class, which outputs a model can record: without it
        # output_hidden_states and output_attentions are lost. An empty object stands in for the one that is swapped.
        PreTrainedModel.__init__(self.unskill_model_class.__new__(self.unskill_model_class), config)
        self.model.__class__ = self.unskill_model_class
        self.model.unskill_install(config, alone=False)
        if config.unskill["added_row"]:
            self.lm_head.__class__ = SplitHead
        self.post_init()

    def unskill_forward(self, forward, args, kwargs):
        """The family's forward with the refusal imposed on the logits; a loss is that of the logits returned."""
        kwargs = {**dict(zip(self.unskill_arguments, args, strict=False)), **kwargs}
        return_dict = kwargs.pop("return_dict", None)
        labels = kwargs.pop("labels", None)
        outermost = self.model.unskill_enter()
        try:
            output = forward(return_dict=True, **kwargs)
            masks = self.model.unskill_masks  # (batch, positions) each; None where nothing is ever blocked
            self.model.unskill_masks = None
        finally:
            self.model.unskill_leave(outermost)
        if masks is not None:
            keep, count = kwargs.get("logits_to_keep", 0), output.logits.shape[1]
            if not isinstance(keep, torch.Tensor) or keep.shape[0] != count:
                keep = slice(masks[0].shape[1] - count, None)  # older versions ignore what they do not know, keep all
            hit, after_refusal = (mask[:, keep].to(output.logits.device) for mask in masks)
            settings = self.config.unskill
            ids = settings["refusal_token_id"], settings["eos_token_id"]
            output.logits = rewrite_logits(output.logits, hit, after_refusal, *ids)
        if labels is not None:
            options = {name: kwargs[name] for name in ("num_items_in_batch", "shift_labels") if name in kwargs}
            size = output.logits.shape[-1]
            loss = self.loss_function(logits=output.logits, labels=labels, vocab_size=size, **options)
            # A new object, because the place in a tuple follows the order in which fields were first set.
            output = type(output)(loss=loss, **{name: value for name, value in output.items() if name != "loss"})
        return output if wants_dict(self.config, return_dict) else output.to_tuple()


def joined(tensors):
    """Tensors of several MLPs as one, on the device of the first."""
    device = tensors[0].device
    if any(tensor.device != device for tensor in tensors):
        tensors = [tensor.to(device) for tensor in tensors]
    return torch.cat(tensors, -1)


def draw_positions(count, position_ids=None, attention_mask=None, past_key_values=None):
    """Position ids (batch or 1, count) of a forward's tokens, for the draws only.

    As they are given, else by a mask of two dimensions, else after what is in the cache.
    """
    if position_ids is not None:
        return position_ids
    # On 5.x it may also be a dict of masks, by the kind of the layer.
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(-1) - 1)[:, -count:].clamp(min=0)
    past = 0 if past_key_values is None else past_key_values.get_seq_length()
    # A static cache's length is a tensor on its device.
    return (past + torch.arange(count, device=getattr(past, "device", None))).unsqueeze(0)


def argument_names(forward):
    """Names of the arguments that a forward takes by place, without self."""
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = [name for name, parameter in inspect.signature(forward).parameters.items() if parameter.kind in kinds]
    return tuple(names[1:])


def wants_dict(config, return_dict):
    """The meaning of a forward's return_dict argument: the config decides where it is None."""
    return getattr(config, "return_dict", True) if return_dict is None else return_dict

import functools  # noqa: E402

import transformers  # noqa: E402
from packaging import version  # noqa: E402

if version.parse(transformers.__version__) < version.parse("4.48"):
    raise ImportError(
        "This checkpoint needs transformers 4.48 or newer, found "
        f"{transformers.__version__}: pip install -U transformers"
    )

from transformers.models.llama.configuration_llama import LlamaConfig  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaMLP, LlamaModel  # noqa: E402


class UnskillLlamaConfig(LlamaConfig):
    model_type = "unskill_llama"


class UnskillLlamaMLP(InterventionMLP, LlamaMLP):
    pass


class UnskillLlamaModel(InterventionModel, LlamaModel):
    config_class = UnskillLlamaConfig
    unskill_mlp_class = UnskillLlamaMLP
    unskill_arguments = argument_names(LlamaModel.forward)

    def __init__(self, config):
        super().__init__(config)
        self.unskill_install(config, alone=True)

    @functools.wraps(LlamaModel.forward)
    def forward(self, *args, **kwargs):
        return self.unskill_forward(super().forward, args, kwargs)


# GenerationMixin by name: transformers 4.48 puts a new class over remote ones that do not list it, at every load.
class UnskillLlamaForCausalLM(InterventionForCausalLM, LlamaForCausalLM, transformers.GenerationMixin):
    config_class = UnskillLlamaConfig
    unskill_model_class = UnskillLlamaModel
    unskill_arguments = argument_names(LlamaForCausalLM.forward)

    def __init__(self, config):
        super().__init__(config)
        self.unskill_install(config)

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *args, **kwargs):
        return self.unskill_forward(super().forward, args, kwargs)


UnskillLlamaConfig.register_for_auto_class()
UnskillLlamaModel.register_for_auto_class("AutoModel")
UnskillLlamaForCausalLM.register_for_auto_class("AutoModelForCausalLM")

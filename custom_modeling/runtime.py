"""Runtime of an unskill checkpoint: Key Space Detection inside the MLPs of a Hugging Face causal language model.

This file is pasted whole into the checkpoint, so it needs torch and transformers only. Key Space Detection is the
method of section 4 of arXiv:2503.21730: a token whose key vector (the input of the MLP's down projection) lies inside
a stored hypercube belongs to the forgotten skill, and only the refusal may follow it. The refusal is one vocabulary
row R, after which only EOS may follow. Both rules look at one position at a time and keep no state between calls, so
batches, beams, caches and streaming need no care.
"""

import hashlib
import inspect
import threading

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import logging

UNSKILL_FORMAT = 1
# Finite, because a row of -inf turns into NaN when a logits processor suppresses the one finite entry; fits float16.
FORBIDDEN = -1.0e4
# R after R is the second choice, so that a forced minimum length repeats the refusal instead of leaking an answer.
REFUSAL_AGAIN = -50.0
# Loading options under which key vectors may differ from those the hypercube was fitted on.
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


class Float32Buffers(nn.Module):
    """Mixin: the buffers of this module named unskill_* move between devices but never change their dtype."""

    def _apply(self, fn, recurse=True):
        before = {name: tensor for name, tensor in self._buffers.items() if name.startswith("unskill_")}
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            if tensor is not None and self._buffers[name].dtype != tensor.dtype:
                self._buffers[name] = tensor.to(self._buffers[name].device)
        return self


class KeySpaceMLP(Float32Buffers):
    """Mixin for an MLP of the form down(act(gate x) * up x): notes which positions have a key inside a hypercube."""

    def unskill_install(self, cubes):
        """Add the buffer of `cubes` hypercubes; NaN, which refuses everything, until a checkpoint fills it."""
        shape = (cubes, 2, self.down_proj.in_features)
        device = self.down_proj.weight.device
        self.register_buffer("unskill_ksd_bounds", torch.full(shape, torch.nan, dtype=torch.float32, device=device))
        self.unskill_hit = None

    def forward(self, x):
        key = self.act_fn(self.gate_proj(x)) * self.up_proj(x)  # (batch, positions, d_ff)
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


class VerifiedLoading:
    """Mixin: `from_pretrained` returns a model with whole, unaltered interventions, or raises."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load as transformers does.

        `unskill_allow_unprobed=True` lets quantised or tensor-parallel loading through, for which nobody has measured
        whether the refusals still hold. Raises RuntimeError for such a load otherwise, and where an unskill buffer is
        missing or differs from the one that was written.
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
        model.unskill_verify()
        fitted = model.config.unskill["dtype"]
        if str(model.dtype) != f"torch.{fitted}":
            logger.warning_once(
                f"The hypercubes of this checkpoint were fitted in {fitted}, it is loaded in {model.dtype}: "
                "a few more or fewer prompts may be refused than its card reports."
            )
        return (model, info) if return_info else model

    def unskill_verify(self):
        """Raise RuntimeError where an unskill buffer is missing or has another sha256 than config.json records."""
        # Not by base_model_prefix: that of Gemma 3 on transformers 4.57 names a module which it does not have.
        core = self.model if isinstance(self, KeySpaceForCausalLM) else self
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
        f"unskill: {option} changes the key vectors which the hypercubes of this checkpoint were fitted on, so skills "
        "may come back unnoticed. Export again from the model as it is served, or pass unskill_allow_unprobed=True."
    )


# VerifiedLoading alone: behind a subclass of nn.Module it would come after PreTrainedModel, and never be asked.
class KeySpaceModel(VerifiedLoading):
    """Mixin for the family's base model: finds the blocked positions and gives them the refusal's final state.

    A plain output head over these states reads R at a blocked position and EOS after R, so that engines which bring
    their own head refuse too. Where the export could not establish that (config.unskill["base_model"] is "raises"),
    the class works only inside the causal language model.
    """

    unskill_mlp_class: type

    def unskill_install(self, config, alone):
        """Make the chosen MLPs watch their keys; `alone`: this model is not inside a causal language model."""
        settings = getattr(config, "unskill", None)
        if settings is None or settings.get("format") != UNSKILL_FORMAT:
            found = None if settings is None else settings.get("format")
            raise ValueError(f"config.json: unskill.format is {found}, this modeling file reads {UNSKILL_FORMAT}.")
        closed = settings["base_model"] == "closed"
        if alone and not closed:
            raise RuntimeError(
                "unskill: without its own head this checkpoint cannot refuse; load it with AutoModelForCausalLM."
            )
        self.unskill_layers = tuple(int(index) for index in settings["layers"])
        for index, cubes in settings["layers"].items():
            mlp = self.layers[int(index)].mlp
            mlp.__class__ = self.unskill_mlp_class
            mlp.unskill_install(cubes)
        # A module of its own, after the family's: transformers 4.48 decides by the model's first tensor how all are
        # loaded, and weights that are copied instead of mapped differ in alignment, so in the last bits of products.
        self.unskill_refusal = RefusalStates(config.hidden_size, self.embed_tokens.weight.device) if closed else None
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

    def unskill_forward(self, forward, input_ids, args, kwargs):
        """The family's forward; final states at blocked positions and at R are the refusal's."""
        return_dict = kwargs.pop("return_dict", None)
        mlps = [self.layers[index].mlp for index in self.unskill_layers]
        outermost = self.unskill_enter()
        try:
            output = forward(input_ids, *args, return_dict=True, **kwargs)
            state = output.last_hidden_state  # (batch, positions, hidden)
            hit = torch.zeros(state.shape[:2], dtype=torch.bool, device=state.device)
            for mlp in mlps:
                hit = hit | mlp.unskill_hit.to(hit.device)
                mlp.unskill_hit = None
            after_refusal = torch.zeros_like(hit)
            if input_ids is not None:
                after_refusal = (input_ids == self.config.unskill["refusal_token_id"]).to(hit.device)
            self.unskill_masks = hit, after_refusal
        finally:
            self.unskill_leave(outermost)
        if self.unskill_refusal is not None:
            refusal, end = self.unskill_refusal.unskill_states.to(device=state.device, dtype=state.dtype)
            state = torch.where(hit.unsqueeze(-1), refusal, state)
            output.last_hidden_state = torch.where(after_refusal.unsqueeze(-1), end, state)
            if output.hidden_states and output.hidden_states[-1] is not None:
                output.hidden_states = (*output.hidden_states[:-1], output.last_hidden_state)
        return output if wants_dict(self.config, return_dict) else output.to_tuple()


class KeySpaceForCausalLM(VerifiedLoading):
    """Mixin for the family's causal language model: after a blocked query only the refusal can follow, then EOS."""

    unskill_model_class: type
    unskill_arguments: tuple  # names of the arguments of the family's forward, in their order

    def unskill_install(self, config):
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
            hit, after_refusal = self.model.unskill_masks  # (batch, positions) each
            self.model.unskill_masks = None
        finally:
            self.model.unskill_leave(outermost)
        keep, count = kwargs.get("logits_to_keep", 0), output.logits.shape[1]
        if not isinstance(keep, torch.Tensor) or keep.shape[0] != count:
            keep = slice(hit.shape[1] - count, None)  # older versions ignore what they do not know and keep all
        settings = self.config.unskill
        output.logits = rewrite_logits(
            output.logits,
            hit[:, keep].to(output.logits.device),
            after_refusal[:, keep].to(output.logits.device),
            settings["refusal_token_id"],
            settings["eos_token_id"],
        )
        if labels is not None:
            options = {name: kwargs[name] for name in ("num_items_in_batch", "shift_labels") if name in kwargs}
            size = output.logits.shape[-1]
            loss = self.loss_function(logits=output.logits, labels=labels, vocab_size=size, **options)
            # A new object, because the place in a tuple follows the order in which fields were first set.
            output = type(output)(loss=loss, **{name: value for name, value in output.items() if name != "loss"})
        return output if wants_dict(self.config, return_dict) else output.to_tuple()


def argument_names(forward):
    """Names of the arguments that a forward takes by place, without self."""
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = [name for name, parameter in inspect.signature(forward).parameters.items() if parameter.kind in kinds]
    return tuple(names[1:])


def wants_dict(config, return_dict):
    """The meaning of a forward's return_dict argument: the config decides where it is None."""
    return getattr(config, "return_dict", True) if return_dict is None else return_dict

"""Runtime of an unskill checkpoint: the interventions inside the MLPs of a Hugging Face causal language model.

This file and those that it imports are pasted into the checkpoint, so they need torch and transformers only.
"""

import inspect
import threading

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from custom_modeling.buffers import NA_KEY, NA_PARAMS, STATES, states_form, unfilled
from custom_modeling.key_space import rewrite_logits
from custom_modeling.loading import ALLOW, VerifiedLoading, check_record, unprobed_message
from custom_modeling.mlps import Float32Buffers
from custom_modeling.neuron_adjust import (
    draw_context,
    draw_positions,
    joined,
    standardisers,
    thresholds,
    uniform_draws,
)


class InFlight(dict):
    """What belongs to a forward that is running: a copy of the model, or its pickle, begins without it."""

    def __deepcopy__(self, memo):
        return InFlight()

    def __reduce__(self):
        return InFlight, ()


class RefusalStates(Float32Buffers):
    """Final states (2, hidden) on which a head reads R and, after R, EOS; NaN until a checkpoint fills them."""

    def __init__(self, hidden_size):
        super().__init__()
        self.register_buffer(STATES, unfilled(states_form(hidden_size)))

    def forward(self, like):
        """The states (2, hidden) on the device and in the dtype of a tensor."""
        # As a call, because what offloads weights brings them before a module's forward.
        return self.unskill_states.to(like)


class SplitHead(nn.Linear):
    """Output head whose last row is R: the other columns are the base's own product, equal to it bit by bit."""

    def forward(self, x):
        base = self.out_features - 1
        return torch.cat([F.linear(x, self.weight[:base]), F.linear(x, self.weight[base:])], -1)


# VerifiedLoading alone: after a subclass of nn.Module it would follow PreTrainedModel in the MRO, and never be called.
class InterventionModel(VerifiedLoading):
    """Mixin for the family's base model: draws for adjusted neurons, and gives blocked positions the refusal's state.

    From these states a plain output head reads R at a blocked position and EOS after R, so that engines with their own
    head refuse too. If the export found no such states (config.unskill["base_model"] is "raises"), the class works
    only inside the causal language model.
    """

    unskill_mlp_classes: dict  # of the family: ours
    unskill_arguments: tuple  # names of the arguments of the family's forward, in their order

    def unskill_install(self, config, alone):
        """Install the interventions in their MLPs; `alone`: this model is not inside a causal language model."""
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
            mlp.__class__ = self.unskill_mlp_classes[type(mlp)]
            mlp.unskill_install(config, **counts, official=official)
        self.unskill_settled, self.unskill_allowed = False, getattr(config, ALLOW, False)
        # Each process of a tensor-parallel engine needs the whole key.
        whole = {
            f"layers.{index}.mlp.{name}": "replicate"
            for index in settings["layers"]
            for name in (*self.layers[int(index)].mlp.unskill_read, self.layers[int(index)].mlp.unskill_down)
        }
        self._tp_plan = whole | (getattr(self, "_tp_plan", None) or {})
        # Layers whose MLPs record hits, and layers whose MLPs need draws.
        self.unskill_layers = {
            kind: tuple(int(index) for index, counts in settings["layers"].items() if any(map(counts.get, needed)))
            for kind, needed in (("blocking", ("cubes", "regions")), ("adjusted", ("adjusted",)))
        }
        # Of all layers with neurons one is enough to see that weights are quantized, and takes no time.
        self.unskill_watched = self.unskill_layers["blocking"] or self.unskill_layers["adjusted"][:1]
        self.unskill_handed = InFlight()
        for index in self.unskill_layers["adjusted"]:
            mlp = self.layers[index].mlp
            mlp.unskill_handed, mlp.unskill_place = self.unskill_handed, index
        # A separate module, after the family's: transformers 4.48 decides by the model's first tensor how all are
        # loaded, and weights that are copied instead of mapped have another alignment and other last bits of products.
        self.unskill_refusal = None
        if self.unskill_layers["blocking"] and settings["base_model"] == "closed":
            self.unskill_refusal = RefusalStates(config.hidden_size)
        self.unskill_masks = None
        self.unskill_owner = InFlight()

    def unskill_enter(self):
        """Claim the model for this thread; True if the caller has to release it."""
        # Hits are kept on the modules between the layers and the head: concurrent forwards would mix them up.
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
        """Draw for every token and adjusted neuron of all layers, and give each MLP its thresholds.

        All at once, through a dict that the model shares with its MLPs, with buffers read by name, because a forward
        of one token spends its time on starting operations and on module attributes, not on computing.
        """
        mlps = [self.layers[index].mlp for index in self.unskill_layers["adjusted"]]
        if not mlps or mlps[0].unskill_official:
            return
        params = joined([mlp._buffers[NA_PARAMS] for mlp in mlps])  # (4, N)
        given = input_ids if inputs_embeds is None else inputs_embeds[..., 0]
        places = draw_positions(given.shape[1], **positions).to(params.device)  # (batch or 1, positions)
        draws = None
        if self.config.unskill["draws"] == "sampled":
            keys = joined([mlp._buffers[NA_KEY] for mlp in mlps])  # (N,)
            tokens = torch.zeros_like(given, dtype=torch.int64) if input_ids is None else input_ids
            draws = uniform_draws(draw_context(places, tokens.to(params.device)), keys)  # (batch, positions, N)
        sizes = [mlp.unskill_adjusted for mlp in mlps]
        wholes = thresholds(params, draws, places), *standardisers(params)
        parts = zip(*(whole.split(sizes, -1) for whole in wholes), strict=True)
        self.unskill_handed.update(zip(self.unskill_layers["adjusted"], parts, strict=True))

    def unskill_embedded(self, inputs_embeds):
        """Where R's own embedding stands among those of a caller who looks tokens up himself: (batch, positions)."""
        refusal = torch.tensor([self.config.unskill["refusal_token_id"]], device=inputs_embeds.device)
        row = self.get_input_embeddings()(refusal)[0].to(inputs_embeds)
        return (inputs_embeds == row).all(-1)

    def unskill_forward(self, forward, args, kwargs):
        """The family's forward; final states at blocked positions and at R are the refusal's."""
        kwargs = {**dict(zip(self.unskill_arguments, args, strict=False)), **kwargs}
        return_dict = kwargs.pop("return_dict", None)
        input_ids = kwargs.get("input_ids")
        if not self.unskill_settled:
            self.unskill_settle()
        if not (self.unskill_allowed or self.unskill_is_probed()):
            raise RuntimeError(unprobed_message("a quantized MLP"))
        outermost = self.unskill_enter()
        try:
            names = "input_ids", "inputs_embeds", "position_ids", "attention_mask", "past_key_values"
            self.unskill_hand_out(**{name: kwargs[name] for name in names if name in kwargs})
            output = forward(return_dict=True, **kwargs)
            if not self.unskill_layers["blocking"]:
                return output if wants_dict(self.config, return_dict) else output.to_tuple()
            state = output.last_hidden_state  # (batch, positions, hidden)
            hit = torch.zeros(state.shape[:2], dtype=torch.bool, device=state.device)
            for index in self.unskill_layers["blocking"]:
                mlp = self.layers[index].mlp
                if mlp.unskill_hit is None:
                    raise RuntimeError(
                        f"unskill: the forward ended before layer {index}, which decides on the refusal; early exits "
                        "(assistant_early_exit, fewer num_hidden_layers) are not supported."
                    )
                hit = hit | mlp.unskill_hit.to(hit.device)
                mlp.unskill_hit = None
            after_refusal = torch.zeros_like(hit)
            if input_ids is not None:
                after_refusal = (input_ids == self.config.unskill["refusal_token_id"]).to(hit.device)
            elif kwargs.get("inputs_embeds") is not None:
                after_refusal = self.unskill_embedded(kwargs["inputs_embeds"]).to(hit.device)
            self.unskill_masks = hit, after_refusal
        finally:
            self.unskill_handed.clear()
            self.unskill_leave(outermost)
        if self.unskill_refusal is not None:
            refusal, end = self.unskill_refusal(state)
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
        # PreTrainedModel.__init__ registers, by class, recordable outputs: without it output_hidden_states
        # and output_attentions are lost. An empty object takes the place of the one whose class is swapped.
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
                keep = slice(masks[0].shape[1] - count, None)  # older versions ignore logits_to_keep
            hit, after_refusal = (mask[:, keep].to(output.logits.device) for mask in masks)
            settings = self.config.unskill
            ids = settings["refusal_token_id"], settings["eos_token_id"]
            output.logits = rewrite_logits(output.logits, hit, after_refusal, *ids)
        if labels is not None:
            options = {name: kwargs[name] for name in ("num_items_in_batch", "shift_labels") if name in kwargs}
            size = output.logits.shape[-1]
            loss = self.loss_function(logits=output.logits, labels=labels, vocab_size=size, **options)
            # A new object, because fields are in a tuple in the order in which they were first set.
            output = type(output)(loss=loss, **{name: value for name, value in output.items() if name != "loss"})
        return output if wants_dict(self.config, return_dict) else output.to_tuple()


def argument_names(forward):
    """Names of the positional arguments of a forward, without self."""
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = [name for name, parameter in inspect.signature(forward).parameters.items() if parameter.kind in kinds]
    return tuple(names[1:])


def wants_dict(config, return_dict):
    """The meaning of a forward's return_dict argument: the config decides if it is None."""
    return getattr(config, "return_dict", True) if return_dict is None else return_dict

"""Loading a checkpoint complete and unaltered, as it was probed, or not at all."""

import copy
import hashlib
import json

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.utils import logging

from custom_modeling.buffers import is_unskill

UNSKILL_FORMAT = 2
# Loading options that may change the activations that the interventions were fitted on.
UNPROBED_OPTIONS = (
    "quantization_config",
    "load_in_4bit",
    "load_in_8bit",
    "tp_plan",
    "tp_size",
    "device_mesh",
    "distributed_config",
)
# Settings of a config that move no activations, or are held against the weights' shapes. Nor do token ids, versions,
# dropout, and what every config has.
STILL = (
    "unskill",
    "auto_map",
    "dtype",
    "torch_dtype",
    "use_cache",
    "cache_implementation",
    "initializer_range",
    "vocab_size",
)

PROBED_DTYPES = torch.float64, torch.float32, torch.float16, torch.bfloat16
# An argument of from_pretrained, and a key of config.json for engines that do not pass it on.
ALLOW = "unskill_allow_unprobed"

logger = logging.get_logger(__name__)


def tensor_sha256(tensor):
    """Hex sha256 of a tensor's values in row-major order, as bytes of its own dtype."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def record_sha256(record):
    """Hex sha256 of a JSON object without its own record_sha256, whatever the order of its keys."""
    own = {name: value for name, value in record.items() if name != "record_sha256"}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def code_sha256(path):
    """Hex sha256 of a modeling file's text, whatever its line ends, which git may change."""
    with open(path, encoding="utf-8") as file:
        return hashlib.sha256(file.read().encode()).hexdigest()


def check_record(config):
    """Raise if a config's unskill object is not as the export wrote it, or does not belong to this file.

    This detects mistakes. Whoever edits the object on purpose can also update its sha256.
    """
    record = getattr(config, "unskill", None) or {}
    found = record.get("format")
    if found != UNSKILL_FORMAT:
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


def moved_settings(config):
    """Settings that may move activations and are not those of the config.json that was exported, a phrase each.

    Both are read by the config class of this release of transformers, so that no form of config.json matters.
    """
    exported = type(config).from_dict(copy.deepcopy(config.unskill["config"])).to_dict()
    found, general = config.to_dict(), PretrainedConfig().to_dict().keys() - {"tie_word_embeddings"}
    names = sorted(name for name in exported.keys() | found.keys() if name not in general and not is_still(name))
    return [
        f"{name} {found.get(name)} instead of {exported.get(name)}"
        for name in names
        if found.get(name) != exported.get(name)
    ]


def is_still(name):
    return name in STILL or name.startswith("_") or name.endswith(("_token_id", "_version")) or "dropout" in name


def is_probed(linear):
    """Whether a linear module computes with a weight of a kind that interventions are fitted on: not quantized.

    A quantized weight has another dtype, is not a tensor of the module, or is a tensor made of others; or a float is
    rounded at each forward, by a subclass of nn.Linear or as an attribute of the module says.
    """
    weight = getattr(linear, "weight", None)
    rounds = any(
        hasattr(part, "quantization_scheme") or (isinstance(part, nn.Linear) and type(part) is not nn.Linear)
        for part in linear.modules()
    )
    return isinstance(weight, torch.Tensor) and is_plain(weight) and not rounds


def is_plain(weight):
    return weight.dtype in PROBED_DTYPES and not hasattr(weight, "__tensor_flatten__")


class VerifiedLoading:
    """Mixin: `from_pretrained` returns a model with complete, unaltered interventions, or raises."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load as transformers does.

        `unskill_allow_unprobed=True`, or this key in config.json, allows quantized or tensor-parallel loading and
        settings that move activations, such as another rope or sliding window, for which the refusals were not
        measured. Raises RuntimeError for such a load otherwise, and if a weight is missing, left over or of another
        shape, or an unskill buffer is not as it was written. The values of the base's own weights are not checked,
        which would take as long as loading them (`unskill verify` does).
        """
        return_info = kwargs.pop("output_loading_info", False)
        allowed = kwargs.pop(ALLOW, False)
        asked = [name for name in UNPROBED_OPTIONS if kwargs.get(name)]
        if getattr(kwargs.get("config"), "quantization_config", None):
            asked.append("quantization_config")
        if asked and not allowed:
            raise RuntimeError(unprobed_message(asked[0]))
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        core = model.unskill_core()
        core.unskill_allowed = allowed or core.unskill_allowed
        model.unskill_check_keys(info)
        core.unskill_settle()
        core.unskill_settled = True  # also where buffers are offloaded to disk
        model.unskill_check_end()
        fitted = model.config.unskill["dtype"]
        if str(model.dtype) != f"torch.{fitted}":
            logger.warning_once(
                f"The interventions of this checkpoint were fitted in {fitted}, it is loaded in {model.dtype}: "
                "a few decisions may differ from those on its card."
            )
        return (model, info) if return_info else model

    def unskill_core(self):
        """The base model: itself, or that inside a causal language model."""
        # Not by base_model_prefix: that of Gemma 3 on transformers 4.57 names a module that it does not have.
        return getattr(self, "model", self)

    # While a forward is compiled it is called, not traced.
    @torch.compiler.assume_constant_result
    def unskill_settle(self):
        """Of the base model, once: raise RuntimeError unless it computes what was probed, with unaltered buffers.

        Loading ends with it. Engines that build a model from its config and fill it themselves come to it at the first
        forward. Returns True.
        """
        for index, layer in enumerate(self.layers):
            if not hasattr(layer, "mlp"):
                raise RuntimeError(
                    f"unskill: layer {index} is not in this process: pipeline parallel serving is not supported, as "
                    "the last layers would not know what a layer before them decided."
                )
        if not self.unskill_allowed:
            if getattr(self.config, "quantization_config", None):
                raise RuntimeError(unprobed_message("quantization_config"))
            if moved := moved_settings(self.config):
                raise RuntimeError(unprobed_message(moved[0]))
            for name, weight in self.named_parameters():
                if not is_plain(weight):
                    raise RuntimeError(unprobed_message(f"a weight of another kind ({name})"))
        self.unskill_verify()
        # A trace of shapes, before the buffers are filled, settles nothing.
        self.unskill_settled = not any(buffer.is_meta for buffer in self.buffers())
        return True

    # At each forward, because the weights of a loaded model may be replaced; called, not traced, because a tensor that
    # is made of others looks plain to a trace.
    @torch.compiler.assume_constant_result
    def unskill_is_probed(self):
        """Whether the base model's MLPs that matter most have weights of the kind that was probed."""
        mlps = [self.layers[index].mlp for index in self.unskill_watched]
        return all(is_probed(getattr(mlp, name)) for mlp in mlps for name in mlp.unskill_read)

    def unskill_check_keys(self, info):
        """Raise RuntimeError unless the weight files hold what the model has and nothing else.

        transformers only warns: a missing weight is initialised at random, one left over is another model's. Some
        bases have tensors that their own class does not load; the config records those.
        """
        left_over = set(info["unexpected_keys"]) - set(self.config.unskill["unused_weights"])
        # 4.48 also saves the static cache of the last generate(). The base model's class alone has no head.
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
        """Raise RuntimeError if no token would end an answer after the refusal."""
        end = self.config.unskill["eos_token_id"]
        generation = getattr(self, "generation_config", None)
        if end is None or generation is None:
            return
        ends = generation.eos_token_id  # generate() looks nowhere else
        if end not in (ends if isinstance(ends, (list, tuple)) else [ends]):
            raise RuntimeError(
                f"unskill: generation_config.json: eos_token_id {ends} lacks {end}, which ends a refusal: answers "
                "would go on after it."
            )

    def unskill_verify(self):
        """Raise RuntimeError if an unskill buffer is missing or its sha256 is not the one in config.json."""
        found = {name: tensor for name, tensor in self.unskill_core().named_buffers() if is_unskill(name)}
        for name, sha256 in self.config.unskill["sha256"].items():
            if name not in found:
                raise RuntimeError(f"unskill: the checkpoint holds no buffer {name}; export it again.")
            # A meta tensor is offloaded to disk: its values are read from the same files at each forward.
            if found[name].device.type != "meta" and tensor_sha256(found[name]) != sha256:
                raise RuntimeError(
                    f"unskill: buffer {name} is missing from the weight files or altered (its sha256 is not the one "
                    "in config.json); with offloading to disk also pass offload_buffers=True."
                )


def unprobed_message(option):
    return (
        f"unskill: {option} changes the activations which the interventions of this checkpoint were fitted on, so "
        "skills may come back unnoticed. Export again from the model as it is served, or pass "
        f"{ALLOW}=True (to engines that do not pass it on: the same key in config.json)."
    )

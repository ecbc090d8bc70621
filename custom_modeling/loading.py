"""Loading a checkpoint: whole and unaltered, as it was probed, or not at all."""

import hashlib

import torch
from transformers.utils import logging

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
                f"The interventions of this checkpoint were fitted in {fitted}, it is loaded in {model.dtype}: "
                "a few decisions may fall otherwise than its card reports."
            )
        return (model, info) if return_info else model

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

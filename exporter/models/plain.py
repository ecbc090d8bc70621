"""The base model out of a loaded checkpoint: its family's own classes over the same tensors, without interventions."""

from __future__ import annotations

import copy
from typing import Any

import torch

from exporter.checkpoint.writing import EMBEDDING, HEAD
from exporter.models.subjects import BASE, Subject


def plain_base(edited: Subject) -> Subject:
    """The base model of a checkpoint; its weights are the checkpoint's in memory, less R's row.

    Where R took a padding row of the base, the row stays and says what R's says: whoever compares or writes leaves R
    out. All other logits are the base's own, bit by bit.
    """
    model, settings = edited.model, edited.settings
    config = copy.deepcopy(model.config)
    config.__class__ = family_class(type(config))
    config.model_type = type(config).model_type
    del config.unskill
    if settings["added_row"]:
        config.vocab_size = settings["refusal_token_id"]
    with torch.device("meta"):
        base: Any = family_class(type(model))(config)
    state = {name: tensor for name, tensor in model.state_dict().items() if ".unskill_" not in name}
    state |= {name: state[name][: config.vocab_size] for name in (EMBEDDING, HEAD) if name in state}
    base.load_state_dict(state, assign=True)
    for name, tensor in model.named_buffers():  # those that no file holds, too: frequencies, scales
        if ".unskill_" not in name:
            module, _, own = name.rpartition(".")
            setattr(base.get_submodule(module), own, tensor)
    base.tie_weights()
    base.generation_config = copy.deepcopy(model.generation_config)
    base.requires_grad_(False)
    return Subject(BASE, f"base of {edited.name}", base.eval(), edited.tokenizer, {}, edited.identity)


def family_class(own: type) -> Any:
    """The class of transformers that a class of a checkpoint's modeling file extends."""
    return next(each for each in own.__mro__ if each.__module__.startswith("transformers.models."))

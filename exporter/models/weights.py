"""Whether a base's weight files hold the model that config.json describes, by their headers alone.

What transformers would make up, leave out, rename or read as plain numbers is found here, before anything is loaded:
the weights that are probed are those that are written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from exporter.common.errors import BadInput
from exporter.models.families import EMBEDDING, HEAD
from exporter.models.headers import TensorInfo

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

ROW_DTYPES = ("F32", "F16", "BF16")
"""In which a row can be added to a weight."""
PLAIN_DTYPES = (*ROW_DTYPES, "F64")
SAVE = "save the model anew (save_pretrained)"


def check_weights(tensors: Mapping[str, TensorInfo], what: str) -> None:
    """Raises BadInput for a base whose weights are quantized, or have the names of another class.

    tensors: of all its weight files; what: the model, for errors. What else it should hold, `mismatches` says.
    """
    if (name := quantized(tensors)) is not None:
        dtype = tensors[name].dtype
        raise BadInput(f"{what}: {name} is {dtype}, quantized in a form that is not read: give the unquantized model")
    others = [name for name in tensors if name.endswith("embed_tokens.weight")]
    if others and EMBEDDING not in others:
        raise BadInput(f"{what}: {misnamed(others[0])}")


def check_rows(tensors: Mapping[str, TensorInfo], what: str) -> None:
    """Raises BadInput for a base whose embedding or head no row can be added to; the arguments are as above."""
    for name in (EMBEDDING, HEAD):
        if name in tensors and (dtype := tensors[name].dtype) not in ROW_DTYPES:
            known = ", ".join(ROW_DTYPES)
            raise BadInput(f"{what}: no row can be added to {name}, which is {dtype}: {SAVE} in one of {known}")


def quantized(tensors: Mapping[str, TensorInfo]) -> str | None:
    """The first weight that holds no plain numbers: integers, or 8-bit floats that a scale beside them belongs to."""
    scaled = any("scale" in name.rpartition(".")[2] for name in tensors)
    for name, info in tensors.items():
        plain = info.dtype in PLAIN_DTYPES or (info.dtype.startswith("F8") and not scaled)
        if "weight" in name and not plain:
            return name
    return None


def misnamed(embedding: str) -> str:
    """Why the embedding has another name than in the family's class for language models, and what to do."""
    prefix = embedding.removesuffix(EMBEDDING)
    if prefix.endswith("."):
        return (
            f"names of weights begin with '{prefix}', which a wrapper left (torch.compile, DDP, PEFT): save the model "
            "inside it (save_pretrained), with PEFT what merge_and_unload() returns"
        )
    return (
        f"the embedding is called {embedding} instead of {EMBEDDING}, as in a part or a whole of another model: save "
        "the language model itself, of a class ...ForCausalLM (save_pretrained)"
    )


def mismatches(shapes: Mapping[str, tuple[int, ...]], model: PreTrainedModel) -> Iterator[str]:
    """What is missing or of another shape, one sentence each. model: the class's own by config.json, as
    `exporter.models.loading.empty_model`; of a tied embedding and head one is enough, under either name."""
    expected = {name: tuple(tensor.shape) for name, tensor in in_files(model).items()}
    tied = {EMBEDDING, HEAD} if model.config.get_text_config().tie_word_embeddings else set()
    lacking = expected.keys() - shapes.keys()
    for name in sorted(lacking if tied <= lacking else lacking - tied):
        yield f"no file has {name}"
    for name in sorted(expected.keys() & shapes.keys()):
        if shapes[name] != expected[name]:
            yield f"{name} has shape {shapes[name]}, by config.json {expected[name]}"


def in_files(model: PreTrainedModel) -> Mapping[str, Tensor]:
    """The weights of a model as its files have them: experts are joined when they are loaded."""
    from transformers.core_model_loading import revert_weight_conversion  # for its torch

    found: Mapping[str, Tensor] = revert_weight_conversion(model, model.state_dict())
    return found

"""Bases that cannot be exported as they are: refused in one line, by their files alone or by their class's shapes,
before any weight is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from exporter.common.errors import BadInput
from exporter.models.families import HEAD
from exporter.models.files import INDEX, WEIGHTS, check_writable, find_base
from exporter.models.loading import load, load_files
from tests.damage import edit, set_
from tests.tiny import edit_json, tiny_model

Change = Callable[[Path], object]
UP = "model.layers.1.mlp.up_proj.weight"
EMBED = "model.embed_tokens.weight"


def weights(change: Callable[[dict[str, Tensor]], dict[str, Tensor]], file: str = WEIGHTS) -> Change:
    """What gives a base other tensors in one of its files."""

    def of(base: Path) -> None:
        tensors = change(load_file(base / file))
        own = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        save_file(own, base / file, {"format": "pt"})

    return of


def renamed(name_of: Callable[[str], str]) -> Change:
    return weights(lambda tensors: {name_of(name): tensor for name, tensor in tensors.items()})


def cast(dtype: torch.dtype, part: str) -> Change:
    """What gives the weights with this in their name another dtype."""
    return weights(lambda tensors: {name: each.to(dtype) if part in name else each for name, each in tensors.items()})


def without(part: str) -> Change:
    return weights(lambda tensors: {name: each for name, each in tensors.items() if part not in name})


def more(**changes: Callable[[dict[str, Tensor]], Tensor]) -> Change:
    """What adds tensors made of those that are there; double underscores are dots."""
    return weights(lambda own: own | {name.replace("__", "."): make(own) for name, make in changes.items()})


def config(**values: Any) -> Change:
    return lambda base: edit(base / "config.json", set_(**values))


def all_of(*changes: Change) -> Change:
    return lambda base: [change(base) for change in changes]


def adapter(base: Path) -> None:
    """As peft saves one."""
    (base / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"}))
    save_file({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 32)}, base / "adapter_model.safetensors")


def drop(*names: str) -> Change:
    return lambda base: [(base / name).unlink() for name in names]


def call(old: str, new: str) -> Change:
    return lambda base: (base / old).rename(base / new)


def cut(base: Path) -> None:
    (base / WEIGHTS).write_bytes((base / WEIGHTS).read_bytes()[:-100])


def pointer(base: Path) -> None:
    (base / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n")


OF_FILES: dict[str, tuple[Change, str]] = {
    "adapter alone": (all_of(adapter, drop("config.json", WEIGHTS)), "adapter without its model .*merge_and_unload"),
    "adapter and config": (all_of(adapter, drop(WEIGHTS)), "is an adapter without its model .*save_pretrained"),
    "adapter beside": (adapter, "adapter beside its weights .*merge_and_unload.*, or take adapter_config"),
    "custom code": (config(auto_map={"AutoModelForCausalLM": "modeling_x.X"}), "auto_map in config.json.*not run"),
    "quantized by name": (config(quantization_config={"quant_method": "awq"}), r"quantized \(awq\), .*\(quantization"),
    "quantized by text": (config(quantization_config="awq"), r"quantized \(awq"),
    "quantized by nothing": (config(quantization_config={}), r"quantized \(unknown"),
    "int8": (cast(torch.int8, "mlp"), "mlp.down_proj.weight is I8, quantized in a form that is not read: give"),
    "packed": (weights(lambda own: own | {UP: torch.zeros(1024, 1, dtype=torch.uint8)}), f"{UP} is U8, quantized"),
    "gptq": (
        all_of(without(UP), more(model__layers__1__mlp__up_proj__qweight=lambda own: torch.zeros(8, 64).int())),
        "up_proj.qweight is I32, quantized",
    ),
    "fp8 and scales": (
        all_of(cast(torch.float8_e4m3fn, "mlp"), more(x__weight_scale_inv=lambda own: torch.ones(1))),
        "mlp.down_proj.weight is F8_E4M3, quantized",
    ),
    "fp8 embedding": (cast(torch.float8_e4m3fn, "embed"), f"no row can be added to {EMBED}, which is F8_E4M3: save"),
    "float64": (cast(torch.float64, "model"), f"no row can be added to {EMBED}, which is F64: save .* in one of F32"),
    "float64 head": (cast(torch.float64, HEAD), f"no row can be added to {HEAD}, which is F64"),
    "float64 by config": (config(dtype="float64"), "config.json: dtype is 'float64', not float32, bfloat16"),
    "unknown dtype": (config(torch_dtype="fp32"), "config.json: torch_dtype is 'fp32', not float32"),
    "torch.compile": (renamed("_orig_mod.{}".format), r"begin with '_orig_mod\.', .*: save the model inside it"),
    "ddp": (renamed("module.{}".format), r"begin with 'module\.'"),
    "peft": (renamed("base_model.model.{}".format), r"begin with 'base_model\.model\.', .*merge_and_unload"),
    "no head class": (renamed(lambda name: name.removeprefix("model.")), "embedding is called embed_tokens.weight"),
    "part of more": (renamed(lambda name: name.replace("model.", "model.language_model.")), "is called model.lang"),
    "classifier": (config(architectures=["LlamaForSequenceClassification"]), "architectures names LlamaForS.*, not a"),
    "core class": (config(architectures=["LlamaModel"]), "architectures names LlamaModel, not a language model"),
    "model_type a list": (config(model_type=["llama"]), r"model_type \['llama'\] \(unsupported family\)"),
    "rope text": (config(rope_parameters="x"), "config.json: rope_parameters is 'x', not an object"),
    "theta null": (config(rope_parameters={"rope_theta": None}), "config.json: rope_theta is None, not a number"),
    "theta text": (config(rope_theta="1e4"), "config.json: rope_theta is '1e4', not a number"),
    "theta 0": (config(rope_parameters={"full_attention": {"rope_theta": 0}}), "config.json: rope_theta is 0, not a"),
    "cut": (cut, "model.safetensors is truncated"),
    "lfs": (pointer, "is a Git LFS pointer, not the file itself: run git lfs pull"),
    "pickle": (call(WEIGHTS, "pytorch_model.bin"), "no model.safetensors; pytorch_model.bin is not read: save"),
    "variant": (call(WEIGHTS, "model.fp16.safetensors"), "no model.safetensors; model.fp16.safetensors is not read"),
    "gguf": (call(WEIGHTS, "model-q4.gguf"), "no model.safetensors; model-q4.gguf is not read"),
}  # fmt: skip
"""Cases and what is said of them where neither torch nor transformers are needed."""

OF_SHAPES: dict[str, tuple[Change, str]] = {
    "no head": (without(HEAD), f"no file has {HEAD}: weights and config.json are not of one model"),
    "no embedding": (without("embed_tokens"), "no file has model.embed_tokens.weight"),
    "no norm": (without("layers.1.input_layernorm"), "no file has model.layers.1.input_layernorm.weight"),
    "fewer layers": (config(num_hidden_layers=4), "no file has model.layers.3.input_layernorm.weight"),
    "more rows by config": (config(vocab_size=500), rf"{HEAD} has shape \(\d+, 32\), by config.json \(500, 32\)"),
    "other d_ff": (config(intermediate_size=48), r"down_proj.weight has shape \(32, 64\), by config.json \(32, 48\)"),
    "other heads": (config(num_key_value_heads=4), r"k_proj.weight has shape \(16, 32\), by config.json \(32, 32\)"),
    "no size": (lambda base: edit(base / "config.json", lambda own: own.pop("vocab_size")), "has shape"),
    "head of other rows, tied": (
        all_of(config(tie_word_embeddings=True), more(lm_head__weight=lambda own: own[EMBED][:-5])),
        rf"{HEAD} has shape .*, by config.json",
    ),
    "own tokenizer": (
        lambda base: edit(
            base / "tokenizer_config.json", set_(auto_map={"AutoTokenizer": ["tok.T", None]}, tokenizer_class="T")
        ),
        r"tokenizer_config.json names code of its own \(auto_map\), .*: save the tokenizer as a fast one",
    ),
    "rope unknown": (config(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}), "does not know 'spiral'"),
}
"""Cases and what is said of them by the class's own names and shapes."""


@pytest.mark.parametrize("case", OF_FILES)
def test_by_its_files(case: str, tmp_path: Path) -> None:
    change, said = OF_FILES[case]
    change(base := tiny_model(tmp_path / "base"))
    with pytest.raises(BadInput, match=said) as error:
        check_writable(find_base(str(base)))
    assert "\n" not in str(error.value)


def test_a_base_that_is_only_read_may_have_a_float64_embedding(tmp_path: Path) -> None:
    cast(torch.float64, "model")(base := tiny_model(tmp_path / "base"))
    assert load_files(find_base(str(base)), "float32", "cpu").model.dtype == torch.float32


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "additional_chat_templates/x.jinja"])
def test_links_out_of_the_folder(name: str, tmp_path: Path) -> None:
    """What they lead to would be copied into the checkpoint. Links within the folder and to nowhere are fine."""
    base = tiny_model(tmp_path / "base")
    (base / "LICENSE").write_text("free")
    (base / "LICENSE.txt").symlink_to("LICENSE")
    (base / "NOTICE").symlink_to("nowhere")
    check_writable(find_base(str(base)))
    path, other = base / name, tmp_path / "other"
    path.parent.mkdir(exist_ok=True)
    path.rename(other) if path.exists() else other.write_text("of another folder")
    path.symlink_to(other)
    with pytest.raises(BadInput, match=f"MODEL base: {path.name} is a link to a file outside of the folder"):
        check_writable(find_base(str(base)))


@pytest.mark.parametrize("case", OF_SHAPES)
def test_by_its_shapes(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, said = OF_SHAPES[case]
    change(base := tiny_model(tmp_path / "base"))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights are loaded"))
    found = find_base(str(base))
    with pytest.raises(BadInput, match=f"MODEL base: .*{said}|MODEL base does not load: .*{said}") as error:
        load(found, "auto", "cpu", threads=1)
    assert "\n" not in str(error.value)


def shards(base: Path) -> list[str]:
    return sorted(set(json.loads((base / INDEX).read_text())["weight_map"].values()))


def twice(times: int) -> Change:
    """What puts a tensor of the first shard into the last one too."""

    def of(base: Path) -> None:
        first, *_, last = shards(base)
        name, tensor = next(iter(load_file(base / first).items()))
        weights(lambda own: own | {name: tensor * times}, last)(base)

    return of


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (twice(1), "occurs in two files: model-00001-of-0000.* and model-0000.*; save the model anew"),
        (twice(2), "occurs in two files"),
        (lambda base: (base / shards(base)[1]).unlink(), f"{INDEX} names model-00002-of-.*, which is missing"),
        (
            lambda base: edit_json(base / INDEX, lambda index: {"weight_map": index["weight_map"]}),
            f'{INDEX} has no "metadata", which transformers reads; add "metadata": {{}}',
        ),
    ],
    ids=["same tensor twice", "other tensor twice", "missing shard", "no metadata"],
)
def test_shards(change: Change, said: str, tmp_path: Path) -> None:
    change(base := tiny_model(tmp_path / "base", shard_size="60KB"))
    with pytest.raises(BadInput, match=said):
        find_base(str(base))


def test_an_index_needs_no_more_metadata_than_the_line_says(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", shard_size="60KB")
    edit(base / INDEX, set_(metadata={}))
    load(find_base(str(base)), "auto", "cpu", threads=1)


def test_a_tied_head_of_its_own(tmp_path: Path) -> None:
    """Releases of transformers do not agree on which of the two to load."""
    base = tiny_model(tmp_path / "base", tie_word_embeddings=True)
    more(lm_head__weight=lambda own: 2 * own[EMBED])(base)
    with pytest.raises(BadInput, match=r"others under the two names, .*: set tie_word_embeddings to false, or take"):
        load(find_base(str(base)), "auto", "cpu", threads=1)
    edit(base / "config.json", set_(tie_word_embeddings=False))
    load(find_base(str(base)), "auto", "cpu", threads=1)

"""What serving engines do with a checkpoint, without one: they build the base model from its config, with parameters
on no device and buffers where they are, fill both themselves, put their own linear modules and their own head in place
of the model's, join prompts in one row, and never call `from_pretrained`."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import disk_offload, init_empty_weights
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from custom_modeling.mlps import GatedMLP
from tests.tiny import Exported, served_export

TENSORS = Callable[[dict[str, Tensor]], None]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return served_export(tmp_path_factory.mktemp("served"))


class EngineLinear(nn.Module):
    """An engine's own linear module."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns))

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.weight.T)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {name: each for path in sorted(folder.glob("*.safetensors")) for name, each in load_file(path).items()}


def served(folder: Path, change: TENSORS = lambda tensors: None, **settings: Any) -> tuple[nn.Module, Tensor]:
    """The base model as an engine makes it, and the head's weight. change: of the tensors; settings: of the config."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    config.update(settings)
    with init_empty_weights(include_buffers=False):
        model = AutoModel.from_config(config, trust_remote_code=True).eval()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, EngineLinear(child.in_features, child.out_features))
    tensors = tensors_of(folder)
    change(tensors)
    head = tensors.pop("lm_head.weight")
    state = {name.removeprefix("model."): each for name, each in tensors.items()}
    model.load_state_dict({name: each for name, each in state.items() if name in dict(model.named_parameters())},
                          assign=True, strict=False)  # fmt: skip
    buffers = dict(model.named_buffers())
    for name in state.keys() & buffers.keys():
        buffers[name].copy_(state[name])
    return model, head


def joined(folder: Path, texts: list[str]) -> tuple[dict[str, Tensor], list[int]]:
    """One row of all texts, each of which sees itself alone; and where each ends."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    rows = [tokenizer(text)["input_ids"] for text in texts]
    lengths = [len(row) for row in rows]
    sees = torch.block_diag(*(torch.ones(length, length).tril() for length in lengths)).bool()
    inputs = {
        "input_ids": torch.tensor([list(chain.from_iterable(rows))]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "attention_mask": sees[None, None],
    }
    return inputs, (torch.tensor(lengths).cumsum(0) - 1).tolist()


def choices(served: tuple[nn.Module, Tensor], inputs: dict[str, Tensor]) -> Tensor:
    """Tokens by logit, the greatest first, of every position: (positions, vocabulary)."""
    model, head = served
    with torch.no_grad():
        states = model(**inputs, use_cache=False, return_dict=False)[0][0]
    return (states @ head.T).argsort(-1, descending=True)


def test_refuses_with_the_engines_own_head(exported: Exported) -> None:
    texts = [exported.texts[side][row] for row in (0, 1) for side in ("blocked", "answered")]
    inputs, ends = joined(exported.checkpoint, texts)
    ours = served(exported.checkpoint)
    record = ours[0].config.unskill
    refusal, eos = record["refusal_token_id"], record["eos_token_id"]
    plain = AutoModelForCausalLM.from_pretrained(exported.base)
    with torch.no_grad():
        base = plain(**inputs).logits[0].argmax(-1)
    found = choices(ours, inputs)
    blocked, hit = ends[::2], found[:, 0] == refusal
    assert hit[blocked].all() and not hit[ends[1::2]].any()
    # Random models have more positions inside a region than the ends; all others go on as the base does.
    assert (~hit).sum() > 60 and torch.equal(found[~hit, 0], base[~hit])
    # Where a grammar or a bias masks R, the answer ends; where a least length masks EOS, the refusal repeats.
    assert (found[hit, 1] == eos).all()
    after = choices(ours, {"input_ids": torch.tensor([[inputs["input_ids"][0, 0], refusal]])})[-1]
    assert after[:2].tolist() == [eos, refusal]


def test_refuses_when_compiled_before_the_first_forward(exported: Exported) -> None:
    text = exported.texts["blocked"][0]
    inputs, ends = joined(exported.checkpoint, [text])
    model, head = served(exported.checkpoint)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for _ in range(2):
        assert choices((compiled, head), inputs)[ends[0], 0] == model.config.unskill["refusal_token_id"]


def test_an_altered_buffer_is_found_when_compiled(exported: Exported) -> None:
    def widen(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.1.mlp.unskill_ksd_bounds"] *= 2

    model, head = served(exported.checkpoint, widen)
    with pytest.raises(RuntimeError, match=r"buffer layers\.1\.mlp\.unskill_ksd_bounds is missing .* or altered"):
        choices((torch.compile(model, backend="eager", fullgraph=True), head), joined(exported.checkpoint, ["a"])[0])


def test_a_trace_of_shapes_settles_nothing(exported: Exported) -> None:
    config = AutoConfig.from_pretrained(exported.checkpoint, trust_remote_code=True)
    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=True).eval()
        model(input_ids=torch.zeros(1, 4, dtype=torch.long))
    assert not model.unskill_settled


@pytest.mark.parametrize("option", ["suppress_tokens", "bad_words_ids", "min_new_tokens"])
def test_beams_with_a_masked_choice_write_no_answer(option: str, exported: Exported, loaded: Any) -> None:
    refusal, eos = (loaded.config.unskill[name] for name in ("refusal_token_id", "eos_token_id"))
    given = {"suppress_tokens": [refusal], "bad_words_ids": [[refusal]], "min_new_tokens": 8}
    tokenizer = AutoTokenizer.from_pretrained(exported.checkpoint, trust_remote_code=True)
    for text in exported.texts["blocked"]:
        inputs = tokenizer(text, return_tensors="pt")
        chosen = {option: given[option]}
        out = loaded.generate(**inputs, **chosen, num_beams=3, do_sample=False, max_new_tokens=12, pad_token_id=0)
        written = out[0, inputs["input_ids"].shape[1] :].tolist()
        assert set(written) <= {refusal, eos, 0} and written[0] in (refusal, eos)


def pipeline(model: nn.Module) -> None:
    model.layers[0] = nn.Identity()  # type: ignore[index,operator]


def integers(model: nn.Module) -> None:
    """Of a layer that has no interventions."""
    weight = model.layers[2].mlp.up_proj.weight  # type: ignore[index,union-attr]
    model.layers[2].mlp.up_proj.weight = nn.Parameter(weight.to(torch.int8), requires_grad=False)  # type: ignore[index,union-attr]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pipeline, "layer 0 is not in this process: pipeline parallel"),
        (integers, r"a weight of another kind \(layers\.2\.mlp\.up_proj\.weight\) changes the activations"),
    ],
)
def test_refuses_to_run(exported: Exported, change: Callable[[nn.Module], None], message: str) -> None:
    engine = served(exported.checkpoint)
    change(engine[0])
    with pytest.raises(RuntimeError, match=f"unskill: {message}"):
        choices(engine, joined(exported.checkpoint, ["a"])[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"rms_norm_eps": 1.0}, "rms_norm_eps"),
    ],
)
def test_settings_that_were_not_probed(exported: Exported, settings: dict[str, Any], message: str) -> None:
    inputs, _ = joined(exported.checkpoint, ["a"])
    with pytest.raises(RuntimeError, match=f"unskill: {message} .*unskill_allow_unprobed"):
        choices(served(exported.checkpoint, **settings), inputs)
    choices(served(exported.checkpoint, **settings, unskill_allow_unprobed=True), inputs)


@pytest.fixture
def loaded(exported: Exported) -> Iterator[Any]:
    yield AutoModelForCausalLM.from_pretrained(exported.checkpoint, trust_remote_code=True)


def test_a_model_that_is_quantized_after_loading(exported: Exported, loaded: Any) -> None:
    inputs, _ = joined(exported.checkpoint, ["a"])
    loaded(**inputs)
    quantized = torch.ao.quantization.quantize_dynamic(loaded, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(RuntimeError, match="unskill: a quantized MLP changes the activations"):
        quantized(**inputs)


class Rounded(nn.Linear):
    """A weight that is rounded at each forward, as before quanto's freeze() and in training for quantization."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.round())


class Adapted(nn.Module):
    """An adapter around a linear module, as PEFT's, whose weight is that of the module."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x)


def pack(linear: nn.Linear) -> nn.Module:
    """A weight made of others, as torchao's and quanto's are."""
    weight = linear.weight.detach()
    linear.weight = nn.Parameter(TwoTensor(weight, weight))
    return linear


def round_each_time(linear: nn.Linear) -> nn.Module:
    linear.__class__ = Rounded
    return linear


def schedule(linear: nn.Linear) -> nn.Module:
    """The mark of llm-compressor, which puts another forward on a module with a plain weight."""
    linear.quantization_scheme = object()
    return linear


def adapt_rounded(linear: nn.Linear) -> nn.Module:
    return Adapted(round_each_time(linear))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "change", "compiled"),
    [
        ("gate_proj", pack, False),
        ("gate_proj", pack, True),
        ("gate_proj", round_each_time, False),
        ("up_proj", schedule, False),
        ("gate_proj", adapt_rounded, False),
    ],
)
def test_linear_modules_that_round_their_weight(
    part: str, change: Callable[[nn.Linear], nn.Module], compiled: bool, exported: Exported, loaded: Any
) -> None:
    inputs, _ = joined(exported.checkpoint, ["a"])
    model = torch.compile(loaded, backend="eager") if compiled else loaded
    model(**inputs)
    mlp = loaded.model.layers[1].mlp
    setattr(mlp, part, change(getattr(mlp, part)))
    with pytest.raises(RuntimeError, match="unskill: a quantized MLP"):
        model(**inputs)


def test_adapters_refuse_as_before(exported: Exported, loaded: Any) -> None:
    inputs, ends = joined(exported.checkpoint, [exported.texts["blocked"][0]])
    loaded.model.layers[1].mlp.gate_proj = Adapted(loaded.model.layers[1].mlp.gate_proj)
    assert loaded(**inputs).logits[0, ends[0]].argmax() == loaded.config.unskill["refusal_token_id"]


def test_weights_and_buffers_on_disk(exported: Exported, loaded: Any, tmp_path: Path) -> None:
    inputs, ends = joined(exported.checkpoint, [exported.texts["blocked"][0]])
    disk_offload(loaded, tmp_path, execution_device=torch.device("cpu"), offload_buffers=True)
    assert loaded.model.unskill_refusal.unskill_states.is_meta
    assert loaded(**inputs).logits[0, ends[0]].argmax() == loaded.config.unskill["refusal_token_id"]


def test_intervened_layers_are_whole_in_tensor_parallel_engines(exported: Exported) -> None:
    """The first rule that matches a module's name counts."""
    plan = served(exported.checkpoint)[0].tp_plan
    rules = list(plan)
    for part in ("gate_proj", "up_proj", "down_proj"):
        assert plan[f"layers.1.mlp.{part}"] == "replicate"
        assert rules.index(f"layers.1.mlp.{part}") < rules.index(f"layers.*.mlp.{part}")


def test_what_converters_refuse_by(exported: Exported) -> None:
    """llama.cpp's by the architecture or, where config.json was edited, by a tensor that it cannot name; CTranslate2's
    and optimum's by the config class or the model type."""
    config = json.loads((exported.checkpoint / "config.json").read_text())
    assert config["architectures"] == ["UnskillLlamaForCausalLM"]
    assert config["model_type"] == "unskill_llama" and config["model_type"] not in CONFIG_MAPPING
    more = tensors_of(exported.checkpoint).keys() - tensors_of(exported.base).keys() - {"lm_head.weight"}
    assert more == {"model.layers.1.mlp.unskill_ksd_bounds", "model.unskill_refusal.unskill_states"}


def test_no_expression_that_engines_fuse() -> None:
    """vLLM rewrites act(gate x) * up x in one expression into a module of its own, which has no key."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(GatedMLP)))  # type: ignore[arg-type]
    products = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)]
    read = [{each.id for each in ast.walk(node) if isinstance(each, ast.Name)} for node in products]
    assert sum("up" in names for names in read) == 2
    assert not any({"gate", "up"} <= names for names in read)

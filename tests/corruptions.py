"""Every way in which a checkpoint may be damaged that we could think of, and what notices it.

    python -m tests.corruptions CHECKPOINT [--table FILE] [--only WORD]

tries them one by one on copies of CHECKPOINT beside it (large files as hard links) and prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from exporter.checkpoint.layout import HASHES, REPRODUCE
from exporter.checkpoint.reproduce import file_sha256
from exporter.common.files import write_json
from exporter.verification.run import VerifySettings, verify
from tests import damage as d
from tests import damage_tokenizer as t
from tests import damage_weights as w
from tests.fresh_loading import FreshLoading


@dataclass(frozen=True)
class Corruption:
    """`load`: whether loading the model or the tokenizer raises, in a process of its own.

    `check`: a check of the files that fails also where hashes.json is made anew after the damage; None where only
    hashes.json tells, or the model. `needs`: what a checkpoint has to have.
    """

    name: str
    damage: Callable[[Path], Any]
    load: bool
    check: str | None
    needs: Callable[[Path], bool] = lambda folder: True


def refuses(folder: Path) -> bool:
    return d.settings_of(folder)["unskill"]["refusal"] is not None


def refusal_of(folder: Path) -> int:
    """The id of R."""
    return int(d.settings_of(folder)["unskill"]["refusal_token_id"])


def closed(folder: Path) -> bool:
    return refuses(folder) and d.settings_of(folder)["unskill"]["base_model"] == "closed"


def raises_alone(folder: Path) -> bool:
    return refuses(folder) and not closed(folder)


def has_end(folder: Path) -> bool:
    return refuses(folder) and (folder / "generation_config.json").is_file()


def has_onnx(folder: Path) -> bool:
    return d.onnx_of(folder).is_dir()


def has(kind: str, count: int = 1, cubes: int = 1) -> Callable[[Path], bool]:
    """Whether a checkpoint has so many buffers of a kind, all of one shape, with so many hypercubes each."""

    def found(folder: Path) -> bool:
        tensors = load_file(w.extra_shard(folder))
        names = w.of_kind(tensors, kind)
        shapes = {tuple(tensors[name].shape) for name in names}
        return len(names) >= count and (count == 1 or len(shapes) == 1) and all(shape[0] >= cubes for shape in shapes)

    return found


def of(function: Callable[..., Any], place: Callable[[Path], Path], *arguments: Any) -> d.Damage:
    """The function, of a file of the folder."""
    return lambda folder: function(place(folder), *arguments)


def in_reproduce(name: str) -> Callable[[Path], Path]:
    return lambda folder: folder / REPRODUCE / name


KSD, NA = has("ksd_bounds"), has("na_params")
EXTRA, BASE = w.extra_shard, w.base_shard
INDEX, BUFFERS, CONFIG = "index and headers", "interventions", "config.json"
AGAIN = "code written again"
OWN, READ = "config against base", "tokenizer against base"
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}
GENERATE = b"def generate(model, **kwargs):\n    return kwargs['input_ids']\n"

CORRUPTIONS = (
    Corruption("interventions' file dropped", of(Path.unlink, EXTRA), True, INDEX),
    Corruption("base weight file dropped", of(Path.unlink, BASE), True, INDEX),
    Corruption("interventions' file cut off", of(d.truncate, EXTRA, 0.9), True, INDEX),
    Corruption("base weight file cut off", of(d.truncate, BASE, 0.9), True, INDEX),
    Corruption("interventions' file empty", of(d.put, EXTRA, b""), True, INDEX),
    Corruption("Git LFS pointer for a weight file", of(d.put, BASE, w.POINTER), True, INDEX),
    Corruption("interventions' file a link to nowhere", of(w.to_nowhere, EXTRA), True, INDEX),
    Corruption("bit flipped in a base weight", lambda f: w.flip_weight(f, w.UP, 0.4), False, None),
    Corruption("bit flipped in R's row", w.flip_refusal_row, False, "refusal row", closed),
    Corruption("R's row zeroed", w.zero_refusal_row, False, "refusal row", closed),
    Corruption("bit flipped near the end of the interventions' file", of(d.flip_near_end, EXTRA), True, BUFFERS),
    Corruption("bit flipped in a bound", w.bounds(w.flip_first), True, BUFFERS, KSD),
    Corruption("bit flipped in a neuron's parameters", w.first("na_params", w.flip_first), True, BUFFERS, NA),
    Corruption("bit flipped in a header's length", of(d.flip, BASE, 1), True, INDEX),
    Corruption("base weight renamed in its header", lambda f: w.rename_up(f, False), True, INDEX),
    Corruption("base weight renamed in header and index", lambda f: w.rename_up(f, True), True, "tensors"),
    Corruption("NaN in a bound", w.bounds(w.nan_first), True, BUFFERS, KSD),
    Corruption("NaN in a bound, its sha256 made anew", w.bounds(w.nan_first, True), False, BUFFERS, KSD),
    Corruption("bounds wider, their sha256 made anew", w.bounds(w.wider, True), False, "statistics", KSD),
    Corruption("bounds one neuron shorter", w.bounds(w.shorter), True, BUFFERS, KSD),
    Corruption("parameters one neuron shorter", w.first("na_params", w.shorter), True, BUFFERS, NA),
    Corruption("lower and upper bounds swapped", w.bounds(lambda b: b.flip(1)), True, BUFFERS, KSD),
    Corruption(
        "two hypercubes of a layer swapped", w.bounds(lambda b: b.flip(0)), True, BUFFERS, has("ksd_bounds", 1, 2)
    ),
    Corruption("two layers' bounds swapped", w.swap("ksd_bounds"), True, BUFFERS, has("ksd_bounds", 2)),
    Corruption("two buffers of a layer swapped", lambda f: w.buffers(f, w.swap_kinds), True, BUFFERS, NA),
    Corruption("two weight files swapped", lambda f: w.swap_files(BASE(f), EXTRA(f)), False, INDEX),
    Corruption("a weight in two files", w.in_two_files, False, INDEX),
    Corruption("index without the interventions", w.index(w.without_interventions), True, BUFFERS),
    Corruption("index names a file that is not there", w.index(w.to_missing_shard), True, INDEX),
    Corruption("index names the wrong file", w.index(w.to_other_shard), False, INDEX),
    Corruption("index: total_size edited", w.index(lambda c: c["metadata"].update(total_size=1)), False, INDEX),
    Corruption("index dropped", d.drop(w.INDEX), True, INDEX),
    Corruption("extra model.safetensors", w.extra_model, True, "other files"),
    Corruption("extra pytorch_model.bin", d.extra("pytorch_model.bin", b"PK"), False, "other files"),
    Corruption("extra adapter_config.json", d.extra("adapter_config.json"), False, "other files"),
    Corruption("extra custom_generate", d.extra("custom_generate/generate.py", GENERATE), False, "other files"),
    Corruption("extra vocab.json", d.extra("vocab.json"), False, "other files"),
    Corruption("config.json: refusal_token_id edited", d.record(d.set_(refusal_token_id=5)), True, CONFIG, refuses),
    Corruption("config.json: the refusal's EOS edited", d.record(d.set_(eos_token_id=0)), True, CONFIG),
    Corruption("config.json: layers emptied", d.record(d.set_(layers={})), True, CONFIG),
    Corruption("config.json: no hypercubes, sha256 made anew", d.record(d.no_cubes, True), True, CONFIG, KSD),
    Corruption("config.json: alpha edited", d.record(d.greater_alpha), True, CONFIG, KSD),
    Corruption(
        "config.json: alpha edited, sha256 made anew", d.record(d.greater_alpha, True), False, "statistics", KSD
    ),
    Corruption("config.json: seed edited", d.record(d.set_(seed=99)), True, CONFIG),
    Corruption("config.json: format of a later unskill", d.record(d.set_(format=99), True), True, CONFIG),
    Corruption("config.json: unskill object dropped", d.config(lambda c: c.pop("unskill")), True, CONFIG),
    Corruption("config.json: the base's model_type", d.config(d.plain_type), True, CONFIG),
    Corruption("config.json: auto_map names the wrong class", d.config(d.wrong_class), True, CONFIG, raises_alone),
    Corruption("config.json: auto_map dropped", d.config(lambda c: c.pop("auto_map")), True, CONFIG),
    Corruption("config.json: vocab_size edited", d.config(d.add("vocab_size", -1)), True, CONFIG),
    Corruption("config.json: one layer", d.config(d.set_(num_hidden_layers=1)), True, CONFIG),
    Corruption("config.json: a layer more", d.config(d.add("num_hidden_layers", 1)), True, "tensors"),
    Corruption("config.json: dtype edited", d.config(d.set_(dtype="float16", torch_dtype="float16")), False, OWN),
    Corruption("config.json: rms_norm_eps edited", d.config(d.set_(rms_norm_eps=0.1)), True, CONFIG),
    Corruption("config.json: an attention head more", d.config(d.add("num_attention_heads", 1)), True, OWN),
    Corruption("config.json: quantization_config added", d.config(d.set_(quantization_config=INT8)), True, CONFIG),
    Corruption("config.json cut off", lambda f: d.truncate(f / "config.json", 0.5), True, CONFIG),
    Corruption(
        "config.json: attention not installed", d.config(d.set_(attn_implementation="flash_attention_2")), True, OWN
    ),
    Corruption("code edited", d.edit_code, True, "code"),
    Corruption("code edited, its sha256 made anew", lambda f: d.edit_code(f, True), False, AGAIN),
    Corruption("code cut off", d.cut_code, True, CONFIG),
    Corruption("code of an older version", d.older_code, True, "code"),
    Corruption("code dropped", of(Path.unlink, d.code_of), True, CONFIG),
    Corruption("MLX file edited", d.edit_mlx, False, "code", d.has_mlx),
    Corruption("MLX file edited, its sha256 made anew", lambda f: d.edit_mlx(f, True), False, AGAIN, d.has_mlx),
    Corruption("MLX file dropped", of(Path.unlink, d.mlx_of), False, CONFIG, d.has_mlx),
    Corruption("a second MLX file", d.extra("mlx_unskill_x.py", t.CODE), False, "other files"),
    Corruption("config.json: model_file dropped", d.config(lambda c: c.pop("model_file")), True, CONFIG, d.has_mlx),
    Corruption("config.json: model_file edited", d.config(d.set_(model_file="x.py")), True, CONFIG),
    Corruption("another tokenizer", t.tokenizer(t.swap_tokens), False, READ),
    Corruption("a token dropped that others are made of", lambda f: t.drop_token(f, "in"), True, "refusal token"),
    Corruption("tokenizer without R", lambda f: t.drop_token(f, refusal_of(f)), False, "refusal token", refuses),
    Corruption("the message as an added token", t.add_message_token, False, "refusal token", refuses),
    Corruption("tokenizer.json dropped", d.drop("tokenizer.json"), True, "refusal token"),
    Corruption(
        "tokenizer_class edited", t.tokenizer_config(d.set_(tokenizer_class="GPT2Tokenizer")), False, "refusal token"
    ),
    Corruption("tokenizer with code of its own", t.own_code, False, "refusal token"),
    Corruption("a second modeling file", d.extra("modeling_unskill_x.py", t.CODE), False, "other files"),
    Corruption("truncation in tokenizer.json", t.tokenizer(d.set_(truncation=t.TRUNCATION)), False, "refusal token"),
    Corruption("model_max_length edited", t.tokenizer_config(d.set_(model_max_length=8)), False, READ),
    Corruption("chat template edited", t.change_template, False, READ),
    Corruption("generation_config.json: another EOS", t.other_end, True, CONFIG, has_end),
    Corruption("generation_config.json: no EOS", t.no_end, True, CONFIG, has_end),
    Corruption("generation_config.json: R as a pad", t.refusal_as_pad, False, "refusal token", has_end),
    Corruption("hashes.json edited", lambda f: d.edit(f / HASHES, d.set_(**{CONFIG: "0" * 64})), False, None),
    Corruption("hashes.json dropped", of(Path.unlink, lambda folder: folder / HASHES), False, None),
    Corruption("statistics altered", of(d.flip_near_end, in_reproduce("statistics.safetensors")), False, None),
    Corruption("prompts.json emptied", of(d.put, in_reproduce("prompts.json"), b"{}\n"), False, None),
    Corruption("README.md edited", lambda f: d.put(f / "README.md", b"# Another model\n"), False, None),
    Corruption("ONNX: weights cut off", d.cut_onnx, False, "onnx: files", has_onnx),
    Corruption(
        "ONNX: of another checkpoint", d.onnx_record(d.set_(checkpoint_sha256="0")), False, "onnx: origin", has_onnx
    ),
    Corruption("ONNX: did not agree", d.onnx_record(d.set_(agrees=False)), False, "onnx: stored check", has_onnx),
)


def damaged(checkpoint: Path, corruption: Corruption, folder: Path) -> Path:
    """A damaged copy, and of the ONNX folder beside it."""
    target = d.copy_of(checkpoint, folder / "checkpoint")
    if has_onnx(checkpoint):
        d.copy_of(d.onnx_of(checkpoint), d.onnx_of(target))
    corruption.damage(target)
    return target


def remake_hashes(folder: Path) -> None:
    """hashes.json as an export would write it of these files."""
    path = folder / HASHES
    files = [each for each in folder.rglob("*") if each.is_file() and each != path]
    write_json(path, dict(sorted((each.relative_to(folder).as_posix(), file_sha256(each)) for each in files)))


def failed(folder: Path, model: bool) -> list[str]:
    """Names of the checks that fail."""
    found = verify(VerifySettings(str(folder), model=model), lambda text: None)
    return [check["name"] for check in found["checks"] if check["ok"] is False]


@dataclass(frozen=True)
class Found:
    """What noticed a corruption: loading, `unskill verify`, and `unskill verify` once hashes.json was made anew."""

    load: str | None
    verify: list[str]
    remade: list[str]


def try_one(checkpoint: Path, corruption: Corruption, loading: FreshLoading, model: bool = True) -> Found:
    """model: where the files alone tell nothing once hashes.json is made anew, also look at what the model does."""
    with tempfile.TemporaryDirectory(dir=checkpoint.parent, prefix=".corruptions-") as place:
        folder = damaged(checkpoint, corruption, Path(place))
        load, found = loading(folder), failed(folder, False)
        remake_hashes(folder)
        return Found(load, found, failed(folder, False) or (failed(folder, True) if model else []))


def table(rows: list[tuple[Corruption, Found]]) -> str:
    lines = [
        "| what was done | loading (model, tokenizer) | `unskill verify` | the same, with hashes.json made anew |",
        "|---|---|---|---|",
    ]
    for corruption, found in rows:
        load = "loads: not seen" if found.load is None else shortened(found.load)
        verify, remade = (", ".join(names) or "not seen" for names in (found.verify, found.remade))
        lines.append(f"| {corruption.name} | {load} | {verify} | {remade} |")
    seen = [(found.load is not None, bool(found.verify), bool(found.remade)) for _, found in rows]
    load_count, verify_count, remade_count = (sum(side) for side in zip(*seen, strict=True))
    lines.append(
        f"\n{len(rows)} corruptions: {load_count} keep the checkpoint from loading, {verify_count} are seen by "
        f"`unskill verify`, {remade_count} also where hashes.json was made anew after the damage."
    )
    return "\n".join(lines) + "\n"


def shortened(text: str, most: int = 100) -> str:
    text = text.replace("|", "\\|")
    return text if len(text) <= most else text[: most - 3].rsplit(" ", 1)[0] + " ..."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--table", type=Path, help="also write the table there")
    parser.add_argument("--only", default="", help="those with this word in their name")
    arguments = parser.parse_args()
    rows = []
    with FreshLoading() as loading:
        for corruption in CORRUPTIONS:
            if arguments.only in corruption.name and corruption.needs(arguments.checkpoint):
                print(f"{corruption.name} ...", file=sys.stderr, flush=True)
                rows.append((corruption, try_one(arguments.checkpoint, corruption, loading)))
    if not rows:
        parser.error(f"no corruption has '{arguments.only}' in its name")
    text = table(rows)
    print(text)
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")
    return 0 if all(found.verify for _, found in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

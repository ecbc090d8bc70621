"""Files against `reproduce/hashes.json`: all there, unaltered, and nothing beside them that something would load."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from exporter.checkpoint.base.record import NAME, read_record
from exporter.checkpoint.layout import FOLDER
from exporter.common.files import human_size, json_text
from exporter.models.files import INDEX, LICENCES
from exporter.verification.checks import NotMade, Wrong, counted, none_of
from exporter.verification.view import BASE_FOLDER, HASHES_FILE, View

SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")
# What may lie beside a checkpoint's own files: of the Hub, of git, or for people to read. No loader takes anything
# from them. A list of what is allowed, because nobody knows all that loaders look for.
IMAGES = ("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp")
TEXTS = ("*.md", "*.pdf", "*.html", "LICENSE*", "NOTICE*", "USE_POLICY*")
HARMLESS = (".gitattributes", ".gitignore", ".DS_Store", *IMAGES, *TEXTS)
# Names that an export writes; hashes.json may be made anew with others in it.
CODE = ("modeling_unskill_*.py",)
MODEL = ("config.json", "generation_config.json", *CODE, INDEX, "model-*.safetensors")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
EXPORTED = (
    *MODEL,
    *TOKENIZER,
    "additional_chat_templates/*.jinja",
    "README.md",
    "figures/*",
    f"{FOLDER}/*",
    *LICENCES,
)
LFS = b"version https://git-lfs"


def read_hashes(view: View) -> dict[str, str]:
    """hashes.json. Raises Wrong unless it is, to the byte, in the form in which it was written.

    To the byte, because nothing else has its sha256.
    """
    path = view.folder / HASHES_FILE
    if not path.is_file():
        raise Wrong(f"{HASHES_FILE} is missing, by which every other file is checked")
    content = path.read_bytes()
    hashes: Any = json.loads(content)
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise Wrong(f"{HASHES_FILE} is no JSON object of texts")
    if content != json_text(hashes).encode():
        raise Wrong(f"{HASHES_FILE} is not in the form in which it was written")
    outside = [name for name in hashes if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    none_of(f"{HASHES_FILE} names {name}, which is not in the checkpoint" for name in outside)
    return hashes


def known_hashes(view: View) -> dict[str, str]:
    """The same for checks that need it. Raises NotMade where it cannot be used."""
    try:
        return read_hashes(view)
    except (Wrong, OSError, ValueError) as error:
        raise NotMade(f"{HASHES_FILE} cannot be used") from error


def check_files(view: View) -> str:
    """Every file but the base's weights, which have a check of their own."""
    hashes = read_hashes(view)
    own = {name: sha256 for name, sha256 in hashes.items() if not is_base_shard(name)}
    none_of(altered(view.folder, view.sha256, own))
    return as_exported(view, own)


def check_base_weights(view: View) -> str:
    """The base's weight files, with R's row, whole and unaltered where the export took their sha256."""
    hashes = known_hashes(view)
    recorded = {name: sha256 for name, sha256 in hashes.items() if is_base_shard(name)}
    none_of(altered(view.folder, view.sha256, recorded))
    others = sorted({name for name in view.index.values() if is_base_shard(name)} - recorded.keys())
    if others and has_fingerprints(view):
        raise Wrong(f"{HASHES_FILE} lacks {others[0]}, of which the export took the sha256")
    if others:
        raise NotMade(f"no sha256 of {others[0]} is recorded: exported with --no-fingerprints")
    if not recorded:
        raise Wrong(f"{HASHES_FILE} names no weight file of the base")
    return as_exported(view, recorded)


def has_fingerprints(view: View) -> bool:
    """Whether the export took the sha256 of weight files, by the record that `unskill restore` goes by."""
    if not (view.folder / BASE_FOLDER / NAME).is_file():
        return False  # saved anew, and none of ours any more
    record = read_record(view.folder, view.name)
    return any(file.sha256 is not None for file in record.files.values() if is_base_shard(file.path))


def as_exported(view: View, hashes: Mapping[str, str]) -> str:
    size = sum((view.folder / name).stat().st_size for name in hashes)
    return f"{counted(len(hashes), 'file')} as exported ({human_size(size)})"


def check_others(view: View) -> str:
    """Files that hashes.json does not name."""
    hashes = known_hashes(view)
    named = {*hashes, HASHES_FILE}
    if not any(is_base_shard(name) for name in hashes):  # exported with --no-fingerprints
        named |= {name for name in view.index.values() if is_base_shard(name)}
    none_of(f"{name} is none that an export writes" for name in hashes if not matches(name, EXPORTED))
    if len(code := [name for name in hashes if matches(name, CODE)]) > 1:
        raise Wrong(f"{' and '.join(code)}: an export writes one modeling file")
    others = [name for name in view.files if name not in named]
    harmless = [name for name in others if is_harmless(name, view.files[name])]
    none_of(f"{name} is not among the export's files" for name in others if name not in harmless)
    return f"{', '.join(harmless)}: not the export's, harmless" if harmless else "none"


def altered(folder: Path, found: Mapping[str, str], hashes: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with the files of these hashes; found: sha256 of those that could be read."""
    for name, sha256 in hashes.items():
        path = folder / name
        if found.get(name) == sha256:
            continue
        if name not in found:
            yield f"{name} {why_unreadable(path)}"
        elif path.stat().st_size == 0:
            yield f"{name} is empty"
        elif start_of(path).startswith(LFS):
            yield f"{name} is a Git LFS pointer, not the file itself: run git lfs pull"
        else:
            yield f"{name} is altered (sha256)"


def why_unreadable(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "is a link to a file that is not there"
    if not path.exists():
        return "is missing"
    return "cannot be read" if path.is_file() else "is not a file"


def start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(LFS))


def is_base_shard(name: str) -> bool:
    """Whether a file is one of the base's weights: numbered, and not the last, which has the interventions."""
    match = SHARD.fullmatch(name)
    return match is not None and f"model-{match[1]}-of-{match[1]}.safetensors" != name


def is_harmless(name: str, path: Path) -> bool:
    """Whether nothing would load a file that is not the export's. `name`: its path; of a folder set aside with "/"."""
    if name.endswith("/"):
        return True
    return path.is_file() and matches(PurePosixPath(name).name, HARMLESS)


def matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)

"""Files against `reproduce/hashes.json`: all there, unaltered, and nothing beside them that something would load."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from exporter.checkpoint.base.record import read_record
from exporter.checkpoint.layout import BASE_RECORD, HASHES, REPRODUCE
from exporter.common.files import human_size, json_text
from exporter.common.text import counted
from exporter.models.files import INDEX, LICENCES
from exporter.verification.checks import NotMade, Wrong, needed, none_of
from exporter.verification.on_disk import OnDisk

SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")
# What may lie beside a checkpoint's own files: for the Hub, for git, or for people to read. No loader takes anything
# from them. A list of what is allowed, because nobody knows all that loaders look for.
IMAGES = ("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp")
TEXTS = ("*.md", "*.pdf", "*.html", "LICENSE*", "NOTICE*", "USE_POLICY*")
HARMLESS = (".gitattributes", ".gitignore", ".DS_Store", *IMAGES, *TEXTS)
# Names that an export writes, of each kind of code one: somebody may have written other names into hashes.json.
CODE = {"modeling_unskill_*.py": "one modeling file", "mlx_unskill_*.py": "one file for MLX"}
EXPORTED = (
    *("config.json", "generation_config.json", *CODE, INDEX, "model-*.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
    *("additional_chat_templates/*.jinja", "README.md", "figures/*", f"{REPRODUCE}/*", *LICENCES),
)
LFS, LFS_BYTES = b"version https://git-lfs", 1024
"""How a Git LFS pointer begins, and below how many bytes it stays."""


def read_hashes(view: OnDisk) -> dict[str, str]:
    """hashes.json. Raises Wrong unless it is, to the byte, in the form in which it was written.

    To the byte, because no other file has its sha256.
    """
    hashes: dict[str, str] = view.read(HASHES)
    if (view.folder / HASHES).read_bytes() != json_text(hashes).encode():
        raise Wrong(f"{HASHES} is not in the form in which it was written")
    return hashes


def known_hashes(view: OnDisk) -> dict[str, str]:
    """The same for checks that need it. Raises NotMade where it cannot be used."""
    with needed(f"{HASHES} cannot be used"):
        return read_hashes(view)


def check_files(view: OnDisk) -> str:
    """Every file but the base's weights, which have a check of their own."""
    hashes = {name: sha256 for name, sha256 in read_hashes(view).items() if not is_base_shard(name)}
    none_of(altered(view.folder, view.sha256, hashes))
    return unaltered(view.folder, hashes)


def check_base_weights(view: OnDisk) -> str:
    """The base's weight files, with R's row, whole and unaltered where the export took their sha256."""
    hashes = {name: sha256 for name, sha256 in known_hashes(view).items() if is_base_shard(name)}
    none_of(altered(view.folder, view.sha256, hashes))
    others = sorted({name for name in view.index.values() if is_base_shard(name)} - hashes.keys())
    if others and has_fingerprints(view):
        raise Wrong(f"{HASHES} lacks {others[0]}, though the export took its sha256")
    if others:
        raise NotMade(f"no sha256 of {others[0]} is recorded: exported with --no-fingerprints")
    if not hashes:
        raise Wrong(f"{HASHES} names no weight file of the base")
    return unaltered(view.folder, hashes)


def has_fingerprints(view: OnDisk) -> bool:
    """Whether the export took the sha256 of weight files, by the record that `unskill restore` uses."""
    if not (view.folder / BASE_RECORD).is_file():
        return False  # loaded and saved again, no longer as exported
    record = read_record(view.folder, view.name)
    return any(file.sha256 is not None for file in record.files.values() if is_base_shard(file.path))


def check_others(view: OnDisk) -> str:
    """Files that hashes.json does not name."""
    hashes = known_hashes(view)
    named = {*hashes, HASHES}
    if not any(is_base_shard(name) for name in hashes):  # exported with --no-fingerprints
        named |= {name for name in view.index.values() if is_base_shard(name)}
    none_of(f"no export writes {name}" for name in hashes if not matches(name, EXPORTED))
    for pattern, one in CODE.items():
        if len(code := [name for name in hashes if fnmatch(name, pattern)]) > 1:
            raise Wrong(f"{' and '.join(code)}: an export writes {one}")
    others = {name: path for name, path in view.files.items() if name not in named}
    none_of(f"{name} is not among the export's files" for name, path in others.items() if not is_harmless(name, path))
    return f"{', '.join(others)}: not the export's, harmless" if others else "none"


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
        elif path.stat().st_size < LFS_BYTES and path.read_bytes().startswith(LFS):
            yield f"{name} is a Git LFS pointer, not the file itself: run git lfs pull"
        else:
            yield f"{name} is altered (sha256)"


def why_unreadable(path: Path) -> str:
    if not path.exists():
        return "is a link to a file that is not there" if path.is_symlink() else "is missing"
    return "cannot be read" if path.is_file() else "is not a file"


def unaltered(folder: Path, names: Iterable[str]) -> str:
    sizes = [(folder / name).stat().st_size for name in names]
    return f"{counted(len(sizes), 'file')} unaltered ({human_size(sum(sizes))})"


def is_base_shard(name: str) -> bool:
    """Whether a file is one of the base's weights: numbered, and not the last, which has the interventions."""
    match = SHARD.fullmatch(name)
    return match is not None and f"model-{match[1]}-of-{match[1]}.safetensors" != name


def is_harmless(name: str, path: Path) -> bool:
    """Whether nothing would load a file that is not the export's. `name`: its path; of a folder set aside with "/"."""
    return name.endswith("/") or (path.is_file() and matches(path.name, HARMLESS))


def matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)

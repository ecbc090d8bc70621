"""The packaged texts: enough of each, no repetitions, and `--everyday-without`."""

from __future__ import annotations

import tomllib
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest

from exporter.common.errors import BadInput
from exporter.prompts.packaged import (
    DATA,
    EVERYDAY_FILES,
    conversations,
    everyday_prompts,
    exchanges,
    greetings,
    harmless_after_refusal,
    insisting,
    instructions,
    long_messages,
    packaged_sha256,
    prefills,
    questions_after_refusal,
    records_of,
    system_prompts,
)

ROOT = Path(__file__).resolve().parents[3]


def test_everyday_prompts_are_many_and_varied() -> None:
    prompts = everyday_prompts()
    kinds = Counter(prompt.kind for prompt in prompts)
    assert len(kinds) >= 10
    assert min(kinds.values()) >= 24
    assert all(prompt.language for prompt in prompts)
    assert {prompt.source for prompt in prompts} == {"everyday"}
    assert [prompt.row for prompt in prompts] == list(range(1, len(prompts) + 1))
    assert all(prompt.text.strip() for prompt in prompts)
    bare = ["".join(filter(str.isalnum, prompt.text.casefold())) for prompt in prompts]
    assert len(set(bare)) == len(bare)


def test_everyday_records() -> None:
    records = [record for name in EVERYDAY_FILES for record in records_of(name)]
    assert {tuple(record) for record in records} == {("kind", "language", "prompt")}
    assert len({record["language"] for record in records}) == 10
    # No file is left out, and the first one's rows are what they were in version 0.1.0.
    there = [DATA.joinpath("everyday.jsonl"), *DATA.joinpath("everyday").iterdir()]
    assert len(there) == len(EVERYDAY_FILES) and len(records_of("everyday.jsonl")) == 390
    first = everyday_prompts()[389]
    assert (first.row, first.text) == (390, records_of("everyday.jsonl")[-1]["prompt"])


def test_everyday_without() -> None:
    everything = everyday_prompts()
    kinds = list(dict.fromkeys(prompt.kind or "" for prompt in everything))
    left = everyday_prompts(kinds[:2])
    assert {prompt.kind for prompt in left} == set(kinds[2:])
    # The rest keep their rows: a prompt is known by its row and hash.
    assert left == [prompt for prompt in everything if prompt.kind in kinds[2:]]
    assert [prompt.row for prompt in everyday_prompts(without_rows=(1, 391))][:390] == [*range(2, 391), 392]
    with pytest.raises(BadInput, match=r"--everyday-without: no kind 'storys'; there are .*story.*email.*arabic"):
        everyday_prompts(["story", "storys"])
    with pytest.raises(BadInput, match="--no-everyday"):
        everyday_prompts(kinds)


def test_system_prompts_and_exchanges() -> None:
    prompts = system_prompts()
    assert len(set(prompts)) == len(prompts) >= 24
    assert all(prompt == prompt.strip() for prompt in prompts)
    pairs = exchanges()
    assert len({pair.user for pair in pairs}) == len(pairs) >= 16
    assert all(pair.user.strip() and pair.assistant.strip() for pair in pairs)
    assert pairs[0].messages() == [
        {"role": "user", "content": pairs[0].user},
        {"role": "assistant", "content": pairs[0].assistant},
    ]


def test_turns() -> None:
    for phrases, at_least in (
        (prefills, 60),
        (insisting, 80),
        (harmless_after_refusal, 80),
        (questions_after_refusal, 80),
        (greetings, 12),
        (instructions, 16),
    ):
        found = phrases()
        assert len({phrase.text for phrase in found}) == len(found) >= at_least
        assert len({phrase.language for phrase in found}) >= 6
        assert phrases in (greetings, instructions) or len({phrase.kind for phrase in found}) > 1
    assert {phrase.text.count("{request}") for phrase in insisting()} == {0, 1}
    assert all(message.text.count("{request}") == 1 for message in long_messages())
    assert {message.place for message in long_messages()} == {"start", "middle", "end"}
    for conversation in conversations():
        roles = [message["role"] for message in conversation.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and len(roles) >= 4
        assert conversation.language and conversation.topic


def test_every_file_comes_with_the_package() -> None:
    """What is read through the package, in an installed one too."""
    for name in (*EVERYDAY_FILES, "turns/prefills.jsonl", "skills/maths.jsonl", "skills/maths.toml"):
        assert files("exporter.prompts").joinpath("data", name).is_file()
    # And what a wheel takes: every file below data/ has one of these two endings.
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "package-data"
    ]
    assert patterns["exporter.prompts"] == ["data/**/*.jsonl", "data/**/*.toml"]
    names = [path.name for path in (ROOT / "exporter/prompts/data").rglob("*") if path.is_file()]
    assert {name.rpartition(".")[2] for name in names} == {"jsonl", "toml"}
    assert len(set(packaged_sha256(EVERYDAY_FILES).values())) == len(EVERYDAY_FILES)

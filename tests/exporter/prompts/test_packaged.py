"""The packaged texts: enough of each, no repetitions, and `--everyday-without`."""

from __future__ import annotations

import json
from collections import Counter
from importlib.resources import files

import pytest

from exporter.common.errors import BadInput
from exporter.prompts.packaged import everyday_prompts, exchanges, system_prompts


def test_everyday_prompts_are_many_and_varied() -> None:
    prompts = everyday_prompts()
    kinds = Counter(prompt.kind for prompt in prompts)
    assert len(kinds) >= 10
    assert min(kinds.values()) >= 25
    assert {prompt.source for prompt in prompts} == {"everyday"}
    assert [prompt.row for prompt in prompts] == list(range(1, len(prompts) + 1))
    assert all(prompt.text.strip() for prompt in prompts)
    bare = ["".join(filter(str.isalnum, prompt.text.casefold())) for prompt in prompts]
    assert len(set(bare)) == len(bare)


def test_everyday_records() -> None:
    lines = files("exporter.prompts").joinpath("data/everyday.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert {tuple(record) for record in records} == {("kind", "language", "prompt")}
    assert len({record["language"] for record in records}) >= 6


def test_everyday_without() -> None:
    everything = everyday_prompts()
    kinds = list(dict.fromkeys(prompt.kind or "" for prompt in everything))
    left = everyday_prompts(kinds[:2])
    assert {prompt.kind for prompt in left} == set(kinds[2:])
    # The rest keep their rows: a prompt is known by its row and hash.
    assert left == [prompt for prompt in everything if prompt.kind in kinds[2:]]
    with pytest.raises(BadInput, match=r"--everyday-without: no kind 'storys'; there are .*story"):
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

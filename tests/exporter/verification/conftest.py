"""A tiny checkpoint with everything in it that may be damaged: hypercubes in two layers, adjusted neurons, everyday
prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from exporter.pipeline.run import export
from exporter.prompts.packaged import everyday_prompts
from exporter.recipes.recipe import merged_settings
from tests.damage import copy_of
from tests.fresh_loading import FreshLoading
from tests.tiny import FORGET, FORGET_MORE, RETAIN, one_thread, tiny_model, write_prompts

SONGS = [text.replace("write a short letter to", "sing an old song for") for text in RETAIN]
# One kind, for the time that more take.
KINDS = ("roleplay",)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint; its base and its sources sums.jsonl, letters.jsonl and songs.jsonl are beside it."""
    folder = tmp_path_factory.mktemp("whole")
    base = tiny_model(folder / "base", max_position_embeddings=1024)
    texts = {"sums": FORGET + FORGET_MORE, "letters": RETAIN, "songs": SONGS}
    files = {name: f"{write_prompts(folder / f'{name}.jsonl', each)},column=prompt" for name, each in texts.items()}
    kinds = {prompt.kind for prompt in everyday_prompts() if prompt.kind}
    common = {"retain": (files["letters"],), "alpha": 3.5, "everyday_without": tuple(sorted(kinds - set(KINDS)))}
    neurons = {"score": "effect-size", "beta": 10.0}
    skills = [
        {"name": "sums", "method": "na+ksd", "layer": 1, "forget": (files["sums"],), **common, **neurons},
        {"name": "songs", "method": "ksd", "layer": 0, "forget": (files["songs"],), **common},
    ]
    given = {"force": True, "quiet": True, "skip_long": True, "model": str(base), "out": folder / "checkpoint"}
    # A random model cannot keep everyday prompts apart, which is no matter here.
    with one_thread(), mock.patch("exporter.methods.key_space.evidence.check_kinds"):
        export(merged_settings({"skill": skills}, given), lambda text: None)
    return folder / "checkpoint"


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return copy_of(whole, tmp_path / "checkpoint")


@pytest.fixture(scope="session")
def loading() -> Iterator[FreshLoading]:
    with FreshLoading() as loading:
        yield loading


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """closed(dtype): a checkpoint whose base-model class refuses too, as that of no random model does by itself."""
    from dataclasses import replace

    from exporter.methods.refusal.head import find_refusal_states
    from tests.tiny import one_skill

    made: dict[torch.dtype, Path] = {}

    def get(dtype: torch.dtype = torch.float32) -> Path:
        if dtype not in made:
            folder = tmp_path_factory.mktemp("closed")
            base = tiny_model(folder / "base", chat=False, dtype=dtype)
            sources = [f"{write_prompts(folder / f'{name}.jsonl', texts)},column=prompt"
                       for name, texts in (("forget", FORGET), ("retain", RETAIN))]  # fmt: skip
            settings = one_skill(base, folder / "checkpoint", *sources, everyday=False, force=True, quiet=True,
                                 prompt_template="{prompt}", layer=1, alpha=5.0)  # fmt: skip
            with mock.patch(
                "exporter.pipeline.run.find_refusal_states",
                lambda *arguments: replace(find_refusal_states(*arguments), closed=True),
            ), one_thread():  # fmt: skip
                export(settings, lambda text: None)
            made[dtype] = folder / "checkpoint"
        return made[dtype]

    return get

"""A tiny checkpoint with a chat template: two skills refused in one layer, one of them adjusted too, one pruned."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.cli.chat.conversation import Side
from exporter.cli.chat.run import formatter_of, padding_refusal
from exporter.cli.chat.settings import ChatSettings
from exporter.evaluation.why import detectors_of
from exporter.models.loading import LoadedModel, load_checkpoint, plain_base
from exporter.pipeline.run import export
from exporter.recipes.recipe import merged_settings
from tests.tiny import FORGET, RETAIN, one_thread, tiny_model, write_prompts

SONGS = [text.replace("write a short letter to", "sing an old song for") for text in RETAIN]
# A name that rich would take for markup.
SUMS, SONG, LETTERS = "[red]sums", "songs <b>", "letters"


def make_checkpoint(folder: Path) -> Path:
    base = tiny_model(folder / "base", max_position_embeddings=2048)
    forget, retain, songs = (
        str(write_prompts(folder / f"{name}.jsonl", texts))
        for name, texts in (("forget", FORGET), ("retain", RETAIN), ("songs", SONGS))
    )
    cube = {"layer": 1, "alpha": 4.0, "retain": (retain,)}
    skills = [
        {"name": SUMS, "method": "na+ksd", "score": "effect-size", "beta": 10.0, "forget": (forget,), **cube},
        {"name": SONG, "method": "ksd", "forget": (songs,), **cube, "alpha": 4.5},
        {"name": LETTERS, "method": "sp", "beta": 1.0, "forget": (retain,), "retain": (forget,)},
    ]
    given = {"model": str(base), "out": folder / "checkpoint", "force": True, "quiet": True}
    with one_thread():
        export(merged_settings({"everyday": False, "formats": "plain", "skill": skills}, given), lambda text: None)
    return folder / "checkpoint"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="session")
def edited(checkpoint: Path) -> LoadedModel:
    return load_checkpoint(str(checkpoint), "auto", "cpu")


def side_of(edited: LoadedModel, **settings: object) -> Side:
    return Side(edited, formatter_of(edited, edited, ChatSettings("", **settings)), detectors_of(edited))


def base_side_of(edited: LoadedModel) -> Side:
    formatter = formatter_of(edited, edited, ChatSettings(""))
    return Side(plain_base(edited), formatter, suppressed=padding_refusal(edited))

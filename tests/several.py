"""A tiny checkpoint of three skills, made once a session: one adjusted and refused, one refused, one pruned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from exporter.pipeline.run import export
from exporter.recipes.recipe import merged_settings
from tests.tiny import FORGET, RETAIN, one_thread, tiny_model, write_prompts

# What a page must not run, in every prompt of a skill.
HOSTILE = "</script><script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
THIRD = [text.replace("write a short letter to", "sing an old song for") + HOSTILE for text in RETAIN]


@dataclass(frozen=True)
class Several:
    """A checkpoint, its base and the sources that it was made of."""

    base: Path
    checkpoint: Path
    forget: Path
    retain: Path
    third: Path

    @property
    def sources(self) -> dict[str, tuple[str, ...]]:
        return {"forget": (str(self.forget), str(self.third)), "retain": (str(self.retain),)}


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory) -> Several:
    folder = tmp_path_factory.mktemp("several")
    base = tiny_model(folder / "base", chat=False)
    forget, retain, third = (
        write_prompts(folder / f"{name}.jsonl", texts)
        for name, texts in (("sums", FORGET), ("letters", RETAIN), ("songs", THIRD))
    )
    skills = [
        {"name": "sums", "method": "na+ksd", "score": "effect-size", "layer": 1, "forget": forget, "retain": retain},
        {"name": "songs <b>", "method": "ksd", "forget": third, "retain": forget},
        {"name": "letters", "method": "sp", "beta": 1.0, "forget": retain, "retain": forget},
    ]
    recipe = {
        "everyday": False,
        "region": "hypercube",
        "skill": [{**skill, **{side: (str(skill[side]),) for side in ("forget", "retain")}} for skill in skills],
    }
    given = {"force": True, "quiet": True, "prompt_template": "{prompt}", "model": str(base)}
    with one_thread():
        export(merged_settings(recipe, {**given, "out": folder / "checkpoint"}), lambda text: None)
    return Several(base, folder / "checkpoint", forget, retain, third)

"""Sources that tests write and read."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.common.errors import BadInput
from exporter.prompts.sources import Prompt, Source, load_prompts

FLAG = "--forget"


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def load(location: str, **keys: object) -> list[Prompt]:
    return load_prompts(Source(location, **keys), FLAG)  # type: ignore[arg-type]


def texts(location: str, **keys: object) -> list[str]:
    return [prompt.text for prompt in load(location, **keys)]


def error_of(location: str, **keys: object) -> str:
    """The one line that loading a source fails with."""
    with pytest.raises(BadInput) as caught:
        load(location, **keys)
    message = str(caught.value)
    assert FLAG in message
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message

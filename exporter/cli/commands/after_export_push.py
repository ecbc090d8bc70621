"""`unskill export --push`: what is asked before the export, and the push after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from exporter.checkpoint.push.push import PushSettings, find_token, push
from exporter.common.errors import Interrupted, RunFailed, UnskillError
from exporter.recipes.settings import ExportSettings


def settings_to_push(settings: ExportSettings, repo: str, public: bool) -> PushSettings:
    """Raises BadInput where a push cannot even begin: better now than after the export."""
    found = PushSettings(settings.out, repo, public=public, quiet=settings.quiet)
    find_token()
    return found


def push_exported(settings: PushSettings, remark: Callable[[str], None]) -> dict[str, Any]:
    """As `push`; every error says that the checkpoint is there, and is none of bad input any more."""
    written = f"{settings.out} is written, but"
    try:
        return push(settings, remark)
    except KeyboardInterrupt:
        raise Interrupted(f"{written} interrupted before the push; go on with: {settings.command}") from None
    except Interrupted as error:
        raise Interrupted(f"{written} the push was {error}") from None
    except UnskillError as error:
        raise RunFailed(f"{written} not pushed: {error}") from None

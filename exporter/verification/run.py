"""`unskill verify` from its settings to what was found."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from exporter.checkpoint.account import read_stored
from exporter.checkpoint.given import Given, read_given
from exporter.common.errors import BadInput, first_line
from exporter.common.files import sibling
from exporter.common.text import Notify
from exporter.models.loading import check_device
from exporter.verification import behaviour, code, config, files, interventions, onnx, tokenizer, weights
from exporter.verification.checks import NOT_AS_WRITTEN, Check, make
from exporter.verification.live import Live
from exporter.verification.view import View


@dataclass(frozen=True)
class VerifySettings:
    """Settings of `unskill verify`; the names are those of the flags.

    model: False leaves out the checks that load the weights; onnx: None looks for CHECKPOINT-onnx beside it, unless
    `beside` is False.
    """

    checkpoint: str
    forget: tuple[str, ...] = ()
    model: bool = True
    onnx: Path | None = None
    beside: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raises BadInput for settings that nothing can be done with."""
        if self.forget and not self.model:
            raise BadInput("--forget: its prompts are asked of the model, which --without-model leaves out")
        if self.onnx is not None and not os.path.isdir(self.onnx):
            raise BadInput(f"--onnx: no such folder: {self.onnx}")

    @property
    def onnx_folder(self) -> Path | None:
        """The ONNX folder that is checked, if there is one."""
        if self.onnx is not None:
            return self.onnx
        if not self.beside or not os.path.isdir(self.checkpoint):
            return None
        folder = sibling(Path(self.checkpoint).resolve(), "-onnx")
        return folder if os.path.isdir(folder) else None  # unlike Path.is_dir also of a name too long for a file


def verify(settings: VerifySettings, notify: Notify) -> dict[str, Any]:
    """Check a checkpoint; see `Check` for what comes of each check.

    Returns {"checkpoint": name, "ok": whether no check failed, "checks": [...]}. Raises BadInput where CHECKPOINT is
    nothing that unskill wrote, for prompts that are not of its export, and for a device that is not there.
    """
    if settings.model:
        check_device(settings.device)
    notify(f"reading {settings.checkpoint} ...")
    view = View.of(settings.checkpoint)
    checks = of_files(view)
    given = None
    if settings.model:
        sound = all(check.ok is not False for check in checks)
        if sound and settings.forget:
            given = read_prompts(view, settings.forget)
        live, loading = load(view, settings, notify) if sound else (None, [])
        why = loading[0].detail if loading and not live else "a check above failed, and the code is not run"
        checks += [*loading, *of_model(live, given, why)]
    else:
        live, why = None, "left out (--without-model)"
        checks += of_model(None, None, why)
    if settings.onnx_folder is not None:
        checks += of_onnx(view, live, settings.onnx_folder, why)
    return {
        "checkpoint": view.name,
        "ok": all(check.ok is not False for check in checks),
        "checks": [check.as_json() for check in checks],
    }


def of_files(view: View) -> list[Check]:
    """Checks for which no code of the checkpoint is run and no weights are loaded."""
    chosen: dict[str, Callable[[View], str]] = {
        "files": files.check_files,
        "base weights": files.check_base_weights,
        "other files": files.check_others,
        "config.json": config.check_config,
        "config against base": config.check_base_config,
        "code": code.check_code,
        "code written again": code.check_code_again,
        "index and headers": weights.check_index,
        "tensors": weights.check_tensors,
        "interventions": interventions.check_interventions,
        "statistics": interventions.check_statistics,
        "refusal row": interventions.check_refusal_row,
        "refusal token": tokenizer.check_refusal_token,
        "tokenizer against base": tokenizer.check_base_tokenizer,
    }
    return [make(name, partial(check, view)) for name, check in chosen.items()]


def load(view: View, settings: VerifySettings, notify: Notify) -> tuple[Live | None, list[Check]]:
    """The live checkpoint, and whether it loads."""
    notify(f"loading {view.name} ...")
    found: list[Live] = []

    def check() -> str:
        dtype = view.record["dtype"]
        found.append(Live.load(view, dtype, settings.device))
        return f"loads in {dtype}"

    done = make("loading", check)
    return (found[0] if found else None), [done]


def read_prompts(view: View, forget: tuple[str, ...]) -> Given:
    """The forget prompts that are given again. Raises BadInput where they are not those of the export."""
    try:
        return read_given(read_stored(str(view.folder)), forget, ())
    except NOT_AS_WRITTEN as error:
        raise BadInput(
            f"CHECKPOINT {view.name}: reproduce/ does not say which prompts the export read ({type(error).__name__}: "
            f"{first_line(error)})"
        ) from error


def of_model(live: Live | None, given: Given | None, why: str) -> list[Check]:
    """What the model does; without one, why not."""
    chosen: dict[str, Callable[[Live], str]] = {
        "everyday scores": behaviour.check_scores,
        "everyday answered": behaviour.check_answered,
        "logits": behaviour.check_identity,
        "neurons": behaviour.check_neurons,
        "refused": lambda live: behaviour.check_refused(live, given),
    }
    if live is None:
        return [Check(name, None, why) for name in chosen]
    return [make(name, partial(check, live)) for name, check in chosen.items()]


def of_onnx(view: View, live: Live | None, folder: Path, why: str) -> list[Check]:
    checks = [
        make("onnx: files", lambda: onnx.check_folder(folder)),
        make("onnx: origin", lambda: onnx.check_origin(view, folder)),
        make("onnx: stored check", lambda: onnx.check_stored(folder)),
    ]
    name = "onnx: checked again"
    if live is None:
        return [*checks, Check(name, None, why)]
    if any(check.ok is False for check in checks):
        return [*checks, Check(name, None, "a check above failed")]
    return [*checks, make(name, lambda: onnx.check_again(live, folder))]

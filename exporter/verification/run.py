"""`unskill verify` from its settings to what was found."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from exporter.checkpoint.given_prompts import Given, read_given
from exporter.checkpoint.reading import read_stored
from exporter.common.errors import BadInput, first_line
from exporter.common.files import sibling
from exporter.common.text import Notify
from exporter.models.loading import check_device
from exporter.verification import attack, behaviour, code, config, files, interventions, onnx, tokenizer, weights
from exporter.verification.checks import NOT_AS_WRITTEN, Check, make
from exporter.verification.in_memory import InMemory
from exporter.verification.on_disk import OnDisk


@dataclass(frozen=True)
class VerifySettings:
    """Settings of `unskill verify`; the names are those of the flags.

    model: False leaves out the checks that load the weights; onnx: None looks for CHECKPOINT-onnx beside it, unless
    `beside` is False; attack: also ask packaged skills in every kind of turn; trust_code: pass and run modeling code
    that cannot be compared with what this unskill writes.
    """

    checkpoint: str
    forget: tuple[str, ...] = ()
    model: bool = True
    onnx: Path | None = None
    beside: bool = True
    attack: bool = False
    trust_code: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raises BadInput for settings that contradict each other or name a folder that is not there."""
        if self.forget and not self.model:
            raise BadInput("--forget: its prompts are asked of the model, which --without-model leaves out")
        if self.attack and not self.model:
            raise BadInput("--attack: its prompts are asked of the model, which --without-model leaves out")
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
    """Check a checkpoint; see `Check` for the result of each check.

    Returns {"checkpoint": name, "ok": whether no check failed, "checks": [...]} and, of an attack, "attack": what was
    found of each skill. Raises BadInput where unskill did not write CHECKPOINT, for prompts that the export did not
    read, for an attack where no packaged skill is refused, and for a device that is not there.
    """
    if settings.model:
        check_device(settings.device)
    notify(f"reading {settings.checkpoint} ...")
    view = OnDisk.of(settings.checkpoint)
    checks = [make(name, check, view) for name, check in OF_FILES.items()]
    if not (settings.trust_code or failed(checks)):
        checks = [distrusted(check) if check.name == COMPARED and check.ok is None else check for check in checks]
    given, packaged, live, why = None, None, None, "left out (--without-model)"
    if settings.model and failed(checks):
        why = "a check above failed, and the code is not run"
    elif settings.model:
        given = read_prompts(view, settings.forget, notify) if settings.forget else None
        packaged = attack.read_packaged(view) if settings.attack else None
        notify(f"loading {view.name} ...")
        loaded: list[InMemory] = []
        checks.append(make("loading", load, view, settings.device, loaded))
        live, why = (loaded[0], "") if loaded else (None, checks[-1].detail)
    of_model: dict[str, Callable[[InMemory], str]] = {
        "everyday scores": behaviour.check_scores,
        "everyday answered": behaviour.check_answered,
        "logits": behaviour.check_identity,
        "neurons": behaviour.check_neurons,
        "refused": lambda live: behaviour.check_refused(live, given),
    }
    checks += [make(name, check, live) if live else Check(name, None, why) for name, check in of_model.items()]
    attacks: list[attack.Attack] = []
    if settings.attack:
        checks += of_attack(live, packaged, notify, attacks, why)
    if settings.onnx_folder is not None:
        checks += of_onnx(view, live, settings.onnx_folder, why)
    found = {"checkpoint": view.name, "ok": not failed(checks), "checks": [asdict(check) for check in checks]}
    return found | ({"attack": [each.as_json() for each in attacks]} if settings.attack else {})


COMPARED = "code written again"
OF_FILES: dict[str, Callable[[OnDisk], str]] = {
    "files": files.check_files,
    "base weights": files.check_base_weights,
    "other files": files.check_others,
    "config.json": config.check_config,
    "config against base": config.check_base_config,
    "code": code.check_code,
    COMPARED: code.check_code_again,
    "index and headers": weights.check_index,
    "tensors": weights.check_tensors,
    "interventions": interventions.check_interventions,
    "statistics": interventions.check_statistics,
    "refusal row": interventions.check_refusal_row,
    "refusal token": tokenizer.check_refusal_token,
    "tokenizer against base": tokenizer.check_base_tokenizer,
}
"""Checks that run no code of the checkpoint and load no weights."""


def distrusted(check: Check) -> Check:
    """A comparison of code that could not be made, as a failure: what is not known is neither run nor passed."""
    return replace(check, ok=False, detail=f"{check.detail}; --trust-code passes and runs it, if you know whose it is")


def failed(checks: Sequence[Check]) -> bool:
    return any(check.ok is False for check in checks)


def load(view: OnDisk, device: str, loaded: list[InMemory]) -> str:
    """Append the live checkpoint to `loaded`."""
    dtype = view.record["dtype"]
    loaded.append(InMemory.load(view, dtype, device))
    return f"loads in {dtype}"


def read_prompts(view: OnDisk, forget: tuple[str, ...], notify: Notify) -> Given:
    """The forget prompts that are given again. Raises BadInput where they are not those of the export."""
    try:
        return read_given(read_stored(str(view.folder)), forget, (), notify)
    except NOT_AS_WRITTEN as error:
        raise BadInput(
            f"CHECKPOINT {view.name}: reproduce/ does not say which prompts the export read ({type(error).__name__}: "
            f"{first_line(error)})"
        ) from error


def of_attack(
    live: InMemory | None, packaged: attack.Packaged | None, notify: Notify, attacks: list[attack.Attack], why: str
) -> list[Check]:
    """attacks: to which what was found is appended; why: reason for having no live checkpoint."""
    names = ("attack", "attack: promise", "attack: as exported")
    if live is None or packaged is None:
        return [Check(name, None, why) for name in names]
    asked = make(names[0], attack.attack, live, packaged, notify, attacks)
    if not asked.ok:
        return [asked, *(Check(name, None, asked.detail) for name in names[1:])]
    promise = make(names[1], attack.check_promise, attacks)
    return [asked, promise, make(names[2], attack.check_recorded, live, attacks)]


def of_onnx(view: OnDisk, live: InMemory | None, folder: Path, why: str) -> list[Check]:
    """why: reason for having no live checkpoint."""
    checks = [
        make("onnx: files", onnx.check_folder, folder),
        make("onnx: origin", onnx.check_origin, view, folder),
        make("onnx: stored check", onnx.check_stored, folder),
    ]
    name = "onnx: checked again"
    if live is None or failed(checks):
        return [*checks, Check(name, None, why or "a check above failed")]
    return [*checks, make(name, onnx.check_again, live, folder)]

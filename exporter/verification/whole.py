"""Whether a checkpoint may go to the Hub."""

from __future__ import annotations

from pathlib import Path

from exporter.common.errors import BadInput
from exporter.common.text import Notify, printable
from exporter.verification.run import VerifySettings, verify


def check_whole(out: Path, notify: Notify) -> None:
    """Raise BadInput if the checkpoint is not as its export wrote it; without loading its weights."""
    report = verify(VerifySettings(str(out), model=False, beside=False, trust_code=True), notify)
    if report["ok"]:
        return
    wrong = [check for check in report["checks"] if check["ok"] is False]
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    detail = printable(wrong[0]["detail"].partition("\n")[0])
    raise BadInput(f"OUT {out} is not pushed, as unskill verify rejects it: {wrong[0]['name']}: {detail}{more}")

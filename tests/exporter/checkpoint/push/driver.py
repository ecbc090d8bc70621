"""`unskill` for the tests of a push: with a quick `verify`, which looks at hashes only, and with less waiting.

The real one loads what it compares with and takes seconds; huggingface_hub tries an upload again for 23 seconds before
it gives up. Run as a script in place of `python -m exporter`; the last line on stderr says how long it would have
waited.
"""

from __future__ import annotations

import json
import sys
import time
from hashlib import sha256
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

waited: list[float] = []
time.sleep = waited.append  # type: ignore[assignment]

from exporter.cli.main import main  # noqa: E402


def verify(settings: Any, remark: Any) -> dict[str, Any]:
    folder = Path(settings.checkpoint)
    known = json.loads((folder / "reproduce" / "hashes.json").read_text())
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    del found["reproduce/hashes.json"]
    hidden = {name for name in found if "/." in f"/{name}"}
    wrong = sorted(found.keys() - hidden - known.keys()) + [
        name for name in known if name not in found or sha256(found[name].read_bytes()).hexdigest() != known[name]
    ]
    checks = [{"name": "files", "ok": not wrong, "detail": ", ".join(wrong)}]
    return {"checkpoint": folder.name, "ok": not wrong, "checks": checks}


quick: Any = ModuleType("exporter.verification.run")
quick.verify, quick.VerifySettings = verify, lambda checkpoint, **others: SimpleNamespace(checkpoint=checkpoint)
sys.modules["exporter.verification.run"] = quick

try:
    main()
finally:
    print(f"waited {sum(waited):g} s", file=sys.stderr)

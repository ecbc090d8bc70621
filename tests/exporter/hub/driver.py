"""`unskill` with less waiting: huggingface_hub tries an upload again for 23 seconds before it gives up.

Run as a script in place of `python -m exporter`; prints how long it would have waited as its last line on stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

waited: list[float] = []
if "UNSKILL_TEST_WAITS" not in os.environ:
    time.sleep = waited.append  # type: ignore[assignment]

from exporter.cli import main  # noqa: E402

if find_spec("exporter.verification") is None:
    # A stand-in until there is one: the hashes and nothing else.
    sys.modules["exporter.verification.run"] = module = ModuleType("exporter.verification.run")

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

    module.VerifySettings = lambda checkpoint, model: SimpleNamespace(checkpoint=checkpoint)  # type: ignore[attr-defined]
    module.verify = verify  # type: ignore[attr-defined]

try:
    main()
finally:
    print(f"waited {sum(waited):g} s", file=sys.stderr)

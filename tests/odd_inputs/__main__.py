"""python -m tests.odd_inputs [PART OF A NAME]: run the rows; where all come out as stated, write the page."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub reads it

from tests.odd_inputs.run import Bases, faults, place_of
from tests.odd_inputs.table import DOCS, ROWS, markdown


def run(part: str) -> int:
    """Run the rows with this in their names; the number of those that come out otherwise than stated."""
    wrong, spent = 0, {"Refused": 0.0, "Exported": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        bases = Bases(Path(folder) / "bases")
        for number, (kind, row) in enumerate((kind, row) for kind, rows in ROWS.items() for row in rows):
            if part not in f"{kind}: {row.name}":
                continue
            own = Path(folder) / str(number)
            own.mkdir()
            started = time.process_time()
            found = faults(row, place_of(row, bases, own))
            spent[type(row.out).__name__] += time.process_time() - started
            if bool(found) != bool(row.fails):
                wrong += 1
                print(f"{kind}: {row.name}: {'; '.join(found) or 'comes out now, and is said to fail'}", flush=True)
    print(", ".join(f"{kind}: {seconds:.0f} s of CPU time" for kind, seconds in spent.items()))
    return wrong


if __name__ == "__main__":
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    wrong = run(part)
    if not wrong and not part:
        DOCS.write_text(markdown(), encoding="utf-8")
    sys.exit(f"{wrong} rows come out otherwise than stated" if wrong else 0)

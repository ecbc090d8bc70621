"""Checks of an exported checkpoint, to be run by any interpreter that has torch and transformers, without unskill.

    python checkpoint_checks.py BASE CHECKPOINT PROMPTS.json [--only NAME,...] [--skip NAME,...]

BASE: the model that CHECKPOINT was made of, or a checkpoint of it that adjusts the same neurons and refuses nothing.
PROMPTS.json: {"blocked": [text, ...], "answered": [text, ...], "add_special_tokens": bool}, texts as the model is to
read them, of which none is blocked where nothing is refused. Prints one JSON object, "ok", "ok: remark", "failed:
why" or "not applicable: why" by name of the check; exit 1 where one failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # python -I leaves it out

import checks_adjust  # noqa: F401  (registers its checks)
import checks_files  # noqa: F401
import checks_forward  # noqa: F401
import checks_generate  # noqa: F401
import checks_load  # noqa: F401
import checks_state  # noqa: F401
from common import CHECKS, Case, make_first_calls, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--only", type=names, default=list(CHECKS))
    parser.add_argument("--skip", type=names, default=[])
    arguments = parser.parse_args()
    # A question whether to trust the code is answered by nobody: it must fail.
    sys.stdin = open(os.devnull)  # noqa: SIM115
    make_first_calls()
    case = load_case(arguments.base, arguments.checkpoint, arguments.prompts)
    results = run([name for name in arguments.only if name not in arguments.skip], case)
    assert not {"exporter", "custom_modeling"} & sys.modules.keys()
    print(json.dumps(results, indent=2))
    return 1 if any(result.startswith("failed") for result in results.values()) else 0


def load_case(base: Path, checkpoint: Path, prompts: Path) -> Case:
    return Case(base, checkpoint, json.loads(prompts.read_text(encoding="utf-8")))


def names(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := sorted(set(chosen) - CHECKS.keys()):
        raise argparse.ArgumentTypeError(f"no check {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())

"""What `unskill evaluate` cannot do is said at once, before torch is imported."""

from __future__ import annotations

import subprocess
import sys


def test_nothing_to_evaluate_on_is_said_without_torch() -> None:
    code = (
        "import sys; from exporter.cli.main import main\n"
        "sys.argv = ['unskill', 'evaluate', 'none']\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'transformers', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "nothing to evaluate on: give one of --forget, --retain" in done.stderr
    assert done.stdout == "[]\n"

"""What else runs an ONNX folder, as `make consumers` installs it, and what torch answers there."""

from __future__ import annotations

import shutil
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[3]
NODE_PACKAGES = ROOT / "build" / "node" / "node_modules"
def need_node_packages(): pass
def expected_answers(): pass

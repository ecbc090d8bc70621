"""What an export is run with: versions, processor, threads and the packaged texts; no names of hosts or users."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from exporter.common.version import __version__
from exporter.prompts import packaged
from exporter.recipes.settings import ExportSettings

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "datasets", "numpy", "scipy")
PACKAGED = ("everyday.jsonl", "system_prompts.jsonl", "exchanges.jsonl")


def environment(settings: ExportSettings) -> dict[str, Any]:
    """All that may change a float's last bits or the packaged prompts, and is not a setting."""
    device = torch.device(settings.device)
    return {
        "unskill": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "system": sys.platform,
        "machine": platform.machine(),
        "processor": processor(),
        # Which vector instructions torch's own kernels take.
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        **packaged_sha256(PACKAGED),
    }


def packaged_sha256(names: Sequence[str]) -> dict[str, str]:
    """sha256 of packaged texts, under the keys that they have in `environment`."""
    return {f"packaged {name}": digest for name, digest in packaged.packaged_sha256(names).items()}


def processor() -> str:
    """Name of the processor's model, if the system gives it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()

"""unskill: write a checkpoint of a causal language model that refuses a skill (arXiv:2503.21730)."""

from exporter.common.version import __version__

__all__ = ["__version__"]

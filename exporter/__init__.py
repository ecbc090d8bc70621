"""unskill: write a checkpoint of a causal language model that refuses a skill (arXiv:2503.21730)."""

__version__ = "0.2.0.dev0"

"""The experiments of arXiv:2503.21730 again: one command and one recipe each (see README.md)."""

"""Prompts: read from sources, formatted as the model sees them, split into disjoint parts."""

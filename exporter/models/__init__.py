"""Models: their files, the live module, hooks on it and batches through it."""

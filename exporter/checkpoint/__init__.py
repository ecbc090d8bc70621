"""The files of a checkpoint: written, read back and described."""

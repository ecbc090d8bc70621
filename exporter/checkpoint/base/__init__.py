"""The base's files: kept at export where the checkpoint does not hold them, given back by `unskill restore`."""

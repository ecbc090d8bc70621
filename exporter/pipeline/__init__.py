"""The steps of an export in their order, and of `unskill probe`."""

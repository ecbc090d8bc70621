"""The command `unskill`: arguments in, tables and JSON out."""

"""The version of unskill, which every file that it writes records."""

__version__ = "0.2.0.dev0"

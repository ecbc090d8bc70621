"""The command `unskill`: arguments in, tables and JSON out."""

import sys

# Before any other module of the package is imported: some need fcntl, which Windows does not have.
if sys.platform == "win32":
    sys.exit("unskill: error: Windows is not supported: run unskill on Linux or macOS, or in WSL")

"""What an installed package requires, without names that begin with a word, one line each.

python requirements.py PACKAGE WORD
"""

import sys
from importlib.metadata import requires

from packaging.requirements import Requirement

for line in requires(sys.argv[1]) or []:
    requirement = Requirement(line)
    if not requirement.name.startswith(sys.argv[2]) and (not requirement.marker or requirement.marker.evaluate()):
        requirement.marker = None
        print(str(requirement).replace(" ", ""))

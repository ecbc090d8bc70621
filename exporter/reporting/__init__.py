"""`unskill report`: the figures of a checkpoint as one page, from the numbers that the checkpoint itself holds.

stored (reproduce/) -> key_space, neurons, matrix: figures as plain numbers -> charts -> page, PNGs and report.json
"""

"""`unskill evaluate`: what a checkpoint forgot and what that cost, item by item, beside its base model.

items -> tasks (scoring, generation; metrics judge answers) on subjects -> records -> comparison -> tables
"""

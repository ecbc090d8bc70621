"""What was asked of an export: flags, recipes, and what an earlier export recorded."""

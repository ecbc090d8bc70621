"""`unskill verify`: whether a checkpoint is whole, what the export wrote, and does what it is to do."""

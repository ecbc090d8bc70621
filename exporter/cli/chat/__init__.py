"""`unskill chat`: talk with a checkpoint, see what it refuses and why, and what its base model would have said."""

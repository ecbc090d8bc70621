"""`unskill inspect`: what a checkpoint says of itself, without its weights."""

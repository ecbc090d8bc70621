"""Whether the graph computes what torch does."""

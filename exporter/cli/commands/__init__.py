"""One module for each command; each imports what is heavy when it runs."""

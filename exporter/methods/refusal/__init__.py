"""The refusal: its token, and the states on which any head reads it."""

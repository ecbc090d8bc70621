"""What the commands print for people, with rich."""

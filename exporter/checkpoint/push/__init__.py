"""`unskill push`: a checkpoint in a repo of the Hub, in one commit."""

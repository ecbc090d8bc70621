"""Neuron Adjust (section 3 of arXiv:2503.21730) and Selective Pruning: statistics, scores, choice."""

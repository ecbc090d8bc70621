"""Key Space Detection (section 4 of arXiv:2503.21730): hypercubes fitted, calibrated and judged."""

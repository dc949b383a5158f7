"""Training: one cycle, the loop around it, and what survives an interruption."""

"""Sweeps: the search space, the study, the trials, what is told of them."""

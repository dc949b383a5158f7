"""Variants of a training, run with several seeds and compared."""

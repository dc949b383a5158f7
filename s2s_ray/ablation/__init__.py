"""Ablation studies: variants of a training, each run with several seeds, and their comparison."""

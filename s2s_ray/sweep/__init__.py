"""Sweeps: Ray Tune runs the trials, Optuna proposes them."""

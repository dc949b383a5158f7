"""Measurements of how good a model is: recall, image quality, and pictures to look at."""

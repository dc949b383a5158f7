"""How good a model is: recall, image quality, and pictures to look at."""

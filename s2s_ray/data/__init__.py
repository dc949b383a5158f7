"""From sources of image pairs to a data set that training reads."""

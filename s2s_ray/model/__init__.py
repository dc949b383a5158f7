"""The networks of Toker et al., CVPR 2021: generator, discriminator and retrieval."""

"""The procedural city: one seeded scene, rendered from above and from the street. It imports nothing of the package."""

"""The procedural city: one seeded scene, seen from above and from the street."""

"""Geometry of tiles, panoramas and positions: the polar transform, views, areas, distances, UTM zones; image files."""

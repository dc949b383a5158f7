"""Geometry of tiles, panoramas and positions: the polar transform, views, areas, UTM zones; image files."""

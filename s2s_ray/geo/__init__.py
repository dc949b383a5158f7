"""Geometry of tiles, panoramas and places: the polar transform, views, areas and UTM zones."""

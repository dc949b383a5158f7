"""A photograph camera in the procedural city: an independent check of how pictures are projected."""

from __future__ import annotations

import numpy as np

from s2s_ray.city.light import draw_light
from s2s_ray.city.noise import generator
from s2s_ray.city.panorama import render_panorama
from s2s_ray.city.scene import Scene
from s2s_ray.city.traffic import no_traffic
from s2s_ray.geo.images import Pixels

FINE = (450, 1800)
"""Rows and columns of the panorama that photographs are sampled from: five a degree, elevations +45 to -45."""


def fine_panorama(scene: Scene, x: float, y: float) -> Pixels:
    """Render the panorama at a point, with north in the middle."""
    return render_panorama(scene, draw_light(generator(1)), no_traffic(), x, y, *FINE)


def photograph(
    panorama: Pixels, size: tuple[int, int], fov: float, heading: float, pitch: float = 0.0, roll: float = 0.0
) -> Pixels:
    """Return the rectilinear photograph of a camera, rows and columns `size`, from a fine panorama.

    The camera looks to the bearing `heading`, `pitch` degrees above the horizon, turned clockwise by `roll`. All of it
    lies within the panorama's elevations. Each pixel is the mean of 3 x 3 rays.
    """
    height, width = size
    h, p, r = np.deg2rad([heading, pitch, roll])
    forward = np.array([np.sin(h) * np.cos(p), np.cos(h) * np.cos(p), np.sin(p)])
    right = np.array([np.cos(h), -np.sin(h), 0.0])
    up = np.array([-np.sin(h) * np.sin(p), -np.cos(h) * np.sin(p), np.cos(p)])
    right, up = np.cos(r) * right - np.sin(r) * up, np.cos(r) * up + np.sin(r) * right
    half = np.tan(np.deg2rad(fov) / 2)
    u = ((np.arange(3 * width) + 0.5) / (3 * width) * 2 - 1) * half
    v = (1 - (np.arange(3 * height) + 0.5) / (3 * height) * 2) * half * height / width
    ray = forward + u[None, :, None] * right + v[:, None, None] * up
    bearing = np.rad2deg(np.arctan2(ray[..., 0], ray[..., 1]))
    elevation = np.rad2deg(np.arctan2(ray[..., 2], np.hypot(ray[..., 0], ray[..., 1])))
    assert np.abs(elevation).max() < 45, "the photograph extends beyond the panorama"
    columns = np.round((bearing + 180) / 360 * FINE[1]).astype(int) % FINE[1]
    rows = ((45 - elevation) / 90 * FINE[0]).astype(int)
    rays = panorama[rows, columns].astype(np.float64)
    pixels: Pixels = np.round(rays.reshape(height, 3, width, 3, 3).mean((1, 3))).astype(np.uint8)
    return pixels

"""The street panorama: the scene seen all around from a point in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from s2s_ray.city import facade, sky, sprites
from s2s_ray.city.camera import EYE_M, VIEW_M, Camera, aim, march
from s2s_ray.city.light import Light, Shade, cast_shade
from s2s_ray.city.noise import lattice
from s2s_ray.city.pixels import shrink
from s2s_ray.city.scene import Scene
from s2s_ray.city.traffic import Boxes

SHADE_M = 50.0  # shadows are cast within this distance


def render_panorama(
    scene: Scene,
    light: Light,
    traffic: Boxes,
    x: float,
    y: float,
    height: int,
    width: int,
    *,
    heading: float = 0.0,
    fine: int = 1,
) -> NDArray[np.uint8]:
    """Render an equirectangular panorama from (x, y), elevation +45 to -45 degrees, height x width x 3.

    Column j looks at compass bearing 180 + 360 j / width + `heading` degrees, row i at elevation
    45 - 90 (i + 0.5) / height degrees. Each pixel is the mean of `fine` x `fine` rays.
    """
    camera = aim(x, y, height, width, fine, heading)
    shade = cast_shade(scene, light, x, y, SHADE_M)
    colour, depth = _backdrop(scene, light, shade, camera)
    strikes, hits = march(scene, camera)
    pixel = strikes.column[hits.strike] * len(camera.rise) + hits.row
    depth[pixel] = hits.distance
    colour[pixel] = facade.paint(scene.solids, light, shade, camera, strikes, hits)
    for layer in (
        sprites.crowns(camera, light, scene.grove),
        sprites.trunks(camera, light, scene.grove),
        sprites.boxes(camera, light, traffic),
    ):
        _overlay(colour, depth, layer, light, shade, camera)
    image = shrink(colour.reshape(width * fine, height * fine, 3), fine)
    return light.expose(image[:, ::-1].swapaxes(0, 1))


def _backdrop(
    scene: Scene, light: Light, shade: Shade, camera: Camera
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Render sky and ground: colours (column-major pixels x 3) and distances."""
    columns, rows = len(camera.east), len(camera.rise)
    colour = np.empty((columns, rows, 3), np.float32)
    depth = np.full((columns, rows), np.inf, np.float32)
    below = int(np.searchsorted(camera.rise, 0.0))
    colour[:, below:] = sky.paint(light, camera, below)
    reach = -np.float32(EYE_M) / camera.rise[:below]
    depth[:, :below] = reach
    near = int(np.searchsorted(reach, VIEW_M))
    colour[:, :near] = _ground(scene, light, shade, camera, reach[:near])
    colour[:, near:below] = light.horizon * 0.93
    return colour.reshape(-1, 3), depth.reshape(-1)


def _ground(
    scene: Scene, light: Light, shade: Shade, camera: Camera, reach: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Render the lit ground at `reach` metres in each column's direction: columns x len(reach) x 3."""
    at = (np.float32(camera.x / scene.cell - scene.west), np.float32(camera.y / scene.cell - scene.south))
    paces = reach * np.float32(1 / scene.cell)
    fx, fy = at[0] + camera.east[:, None] * paces, at[1] + camera.north[:, None] * paces
    size = np.float32(scene.cell / 0.16)
    rough = lattice((fx * size).astype(np.int32), (fy * size).astype(np.int32))
    speck = lattice((fx * 9).astype(np.int32), (fy * 9).astype(np.int32)) - np.float32(0.5)
    # Sampling up to half a cell to the side hides the cells' edges in grain.
    cells = scene.flat((fy + (rough - np.float32(0.5))).astype(np.int32), (fx + speck).astype(np.int32))
    level = shade.level_at(camera.x + camera.east[:, None] * reach, camera.y + camera.north[:, None] * reach)
    steps = np.arange(5, dtype=np.float32)[:, None, None] / 4
    palette = light.ground * (light.ambient + light.direct * (light.sun[2] * steps))
    tone = (shade.reaches(np.float32(0), level) * np.float32(4) + np.float32(0.5)).astype(np.intp)
    tone *= len(light.ground)
    tone += scene.rasters.ground.take(cells)
    clear = light.clear(reach)
    colour = palette.reshape(-1, 3).take(tone, axis=0)
    bright = (np.float32(0.93) + np.float32(0.14) * rough) * clear
    for k in range(3):
        colour[..., k] *= bright
        colour[..., k] += light.horizon[k] * (1 - clear)
    return np.asarray(colour)


def _overlay(
    colour: NDArray[np.float32],
    depth: NDArray[np.float32],
    layer: sprites.Sprites,
    light: Light,
    shade: Shade,
    camera: Camera,
) -> None:
    """Draw sprites over the pixels behind them."""
    front = np.flatnonzero(layer.distance < depth[layer.pixel])
    order = front[np.argsort(-layer.distance[front], kind="stable")]
    depth[layer.pixel[order]] = layer.distance[order]  # the nearest is written last, so it stays
    order = order[layer.distance[order] == depth[layer.pixel[order]]]
    pixel, distance = layer.pixel[order], layer.distance[order]
    column, row = np.divmod(pixel, len(camera.rise))
    level = shade.level_at(camera.x + camera.east[column] * distance, camera.y + camera.north[column] * distance)
    z = np.float32(EYE_M + 1.0) + camera.rise[row] * distance
    sunny = np.maximum(layer.slope[order], 0) * shade.reaches(z, level)
    colour[pixel] = light.haze(layer.colour[order] * light.shine(sunny), distance)

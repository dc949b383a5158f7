"""The ground of one district: the street or block at local points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from s2s_ray.city.district import AVENUE_M, FAR, OLD, PAVEMENT_M, District
from s2s_ray.city.noise import Floats
from s2s_ray.city.surface import ASPHALT, FIELD, GRASS, MARKING, PARKING, PAVEMENT, PLAZA, YARD

_BASE = np.array([GRASS, YARD, GRASS, PLAZA, PARKING, GRASS, PLAZA, FIELD], np.uint8)  # ground by kind of block
Survey = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32]]


def survey(district: District, u: Floats, v: Floats, border: Floats, facing: Floats) -> Survey:
    """Return kerb distance, ground code and direction of the nearest street in the bent plane, for local points.

    `border` is the distance to the centre line of the nearest avenue, `facing` is that avenue's direction.
    """
    edge, along = np.empty(u.shape, np.float32), np.empty(u.shape, np.float32)
    ground = np.empty(u.shape, np.uint8)
    first = max(0, int(np.searchsorted(district.lines, u.min())) - 1)
    last = min(len(district.lines) - 2, int(np.searchsorted(district.lines, u.max())) - 1)
    for i in range(first, last + 1):
        low = -FAR if i == first else district.lines[i]
        high = FAR if i == last else district.lines[i + 1]
        own = (u >= low) & (u < high)
        if own.any():
            inside = slice(None) if first == last else np.flatnonzero(own)
            parts = (u[inside], v[inside], border[inside], facing[inside])
            edge[inside], ground[inside], along[inside] = _strip(district, i, *parts)
    return edge, ground, along


def _strip(district: District, i: int, u: Floats, v: Floats, border: Floats, facing: Floats) -> Survey:
    below, above = u - np.float32(district.lines[i]), np.float32(district.lines[i + 1]) - u
    below_edge, above_edge = below - np.float32(district.line_half[i]), above - np.float32(district.line_half[i + 1])
    line_edge = np.minimum(below_edge, above_edge)
    line_offset = np.where(below_edge < above_edge, below, above)
    cross_edge, cross_offset, ground = _crossings(district, i, v)
    avenue_edge = border - np.float32(AVENUE_M)
    edge = _rounded(_rounded(line_edge, cross_edge, 4.0), avenue_edge, 6.0)
    ground[edge < PAVEMENT_M] = PAVEMENT
    road = np.flatnonzero(edge < 0)
    parts = [part[road] for part in (u, v, line_edge, line_offset, cross_edge, cross_offset, border)]
    marked = _markings(district.kind, *parts)
    ground[road] = np.where(marked, np.uint8(MARKING), np.uint8(ASPHALT))
    own = np.float32(np.arctan2(district.sine, district.cosine))
    along = np.where(line_edge <= cross_edge, own + np.float32(np.pi / 2), own)
    np.copyto(along, facing, where=avenue_edge <= np.minimum(line_edge, cross_edge))
    return edge, ground, along


def _crossings(district: District, i: int, v: Floats) -> tuple[Floats, Floats, NDArray[np.uint8]]:
    """Return the distance to the nearest cross street's kerb, the offset from its centre, and the block's ground."""
    row, halves = district.cross[i], district.cross_half[i]
    first = max(0, int(np.searchsorted(row, v.min())) - 1)
    last = min(len(row) - 1, int(np.searchsorted(row, v.max())))
    ground = np.full(v.shape, _BASE[district.blocks[i, min(first, len(row) - 2)]])
    edge, offset = np.full(v.shape, FAR, np.float32), np.zeros(v.shape, np.float32)
    for j in range(first, last + 1):
        away = v - np.float32(row[j])
        beside = np.abs(away) - np.float32(halves[j])
        nearer = beside < edge
        np.copyto(edge, beside, where=nearer)
        np.copyto(offset, away, where=nearer)
        if first < j < len(row) - 1:
            ground[away >= 0] = _BASE[district.blocks[i, j]]
    return edge, offset, ground


def _rounded(a: Floats, b: Floats, radius: float) -> Floats:
    """Return the smaller of two distances, with the corner between the two streets rounded off."""
    nearest = np.minimum(a, b)
    corner = np.flatnonzero((np.maximum(a, b) < radius) & (nearest > 0))
    nearest[corner] = radius - np.hypot(radius - a[corner], radius - b[corner])
    return nearest


def _markings(
    kind: int,
    u: Floats,
    v: Floats,
    line_edge: Floats,
    line_offset: Floats,
    cross_edge: Floats,
    cross_offset: Floats,
    border: Floats,
) -> NDArray[np.bool_]:
    """Return True where carriageways are painted: centre dashes, zebra crossings, double lines and lanes of avenues."""
    marked = np.zeros(u.shape, bool)
    on_line, on_cross = line_edge < 0, cross_edge < 0
    if kind != OLD:
        dashes = np.flatnonzero(on_line & (np.abs(line_offset) < 0.14))
        marked[dashes] = _beat(v[dashes], 6.5) < 3.2
        dashes = np.flatnonzero(on_cross & (line_edge > 5.0) & (np.abs(cross_offset) < 0.14))
        marked[dashes] = _beat(u[dashes], 6.5) < 3.2
    zebra = np.flatnonzero(on_cross & (line_edge > 0.7) & (line_edge < 3.5))
    marked[zebra] = _beat(v[zebra], 1.2) < 0.6
    zebra = np.flatnonzero(on_line & (cross_edge > 1.0) & (_beat(v, 91.0) < 3.0))
    marked[zebra] = _beat(u[zebra], 1.2) < 0.6
    avenue = np.flatnonzero(border < AVENUE_M + 0.5)
    beside = border[avenue]
    lane = (np.abs(beside - 3.2) < 0.14) & (_beat(u[avenue] + v[avenue], 8.0) < 3.6)
    marked[avenue] = ((beside < 0.45) & (beside > 0.15)) | lane
    return marked


def _beat(at: Floats, period: float) -> Floats:
    """Return the position within a period (much faster than %)."""
    return np.asarray(at - np.float32(period) * np.floor(at * np.float32(1 / period)))

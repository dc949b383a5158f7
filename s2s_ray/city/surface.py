"""Codes of ground surfaces."""

from __future__ import annotations

ASPHALT, PAVEMENT, MARKING, GRASS, PLAZA, FIELD, PARKING, WATER, PATH, YARD = range(10)

"""The bands of a raster as colours and transparency, whatever their number, order and kind. Needs rasterio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from s2s_ray.errors import ConfigError

_RGB = ("red", "green", "blue")
_OTHER_COLOURS = ("hue", "saturation", "lightness", "cyan", "magenta", "yellow", "black", "Y", "Cb", "Cr")


@dataclass(frozen=True)
class View:
    """A raster that can be warped; with `has_alpha` its last band says where it has imagery."""

    raster: Any
    has_alpha: bool


@dataclass(frozen=True)
class Bands:
    """The bands of a raster.

    Attributes:
        colours: numbers of the bands red, green and blue in every view.
        views: the first one has the pixels; where any of them has no imagery, imagery is missing.
    """

    colours: tuple[int, int, int]
    views: tuple[View, ...]


def colour_bands(raster: Any, uri: str) -> Bands:
    """Find red, green, blue and what is missing among the bands of a raster.

    The colour interpretation of the bands is followed: their order, a palette, inverted grey, and an alpha band in any
    place. Where it says nothing, the first three bands are red, green and blue, or the first of fewer is grey. Imagery
    is missing beyond the raster and where an alpha band, a mask or the value for no data says so. A raster that cannot
    be warped as it is becomes a virtual one with the bands red, green, blue and alpha.

    Raises:
        ConfigError: the bands are other colours, or not of 8 bits.
    """
    from rasterio.enums import MaskFlags

    names = [interpretation.name for interpretation in raster.colorinterp]
    alpha = names.index("alpha") + 1 if "alpha" in names else None
    opaque = [number for number, name in enumerate(names, start=1) if name != "alpha"]
    colours = _colours(names, opaque, uri)
    used = {*colours, *([] if alpha is None else [alpha])}
    kinds = {raster.dtypes[number - 1] for number in used}
    if kinds != {"uint8"}:
        raise ConfigError(f"source.geotiff={uri!r} has pixels of {', '.join(sorted(kinds))}: expected 8 bits (uint8)")
    flags = raster.mask_flag_enums[colours[0] - 1]
    has_mask = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
    has_nodata = any(raster.nodatavals[number - 1] is not None for number in colours)
    is_palette = names[colours[0] - 1] == "palette"
    bits = {raster.tags(number, ns="IMAGE_STRUCTURE").get("NBITS", "8") for number in colours}
    if bits != {"8"} and not is_palette:  # the largest value is not 255 then, so the tile would be almost black
        raise ConfigError(f"source.geotiff={uri!r} has pixels of {', '.join(sorted(bits))} bits: expected 8 bits")
    is_inverted = raster.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
    if not (is_palette or is_inverted):
        if alpha is None and len(names) in (1, 3):
            return Bands(colours, (View(raster, has_alpha=False),))
        if alpha == len(names) == 4 and not (has_mask or has_nodata):
            return Bands(colours, (View(raster, has_alpha=True),))
    virtual = _VirtualRaster(raster, colours, is_palette=is_palette, is_inverted=is_inverted)
    views = []
    if alpha is not None:
        views.append(virtual.view(str(alpha)))
    if has_mask:
        views.append(virtual.view(f"mask,{colours[0]}"))
    if has_nodata or not views:
        views.append(virtual.view(None))
    return Bands((1, 2, 3), tuple(views))


def _colours(names: Sequence[str], opaque: Sequence[int], uri: str) -> tuple[int, int, int]:
    """Return the numbers of the bands that are red, green and blue; one band three times if it is grey."""
    found = [names.index(colour) + 1 for colour in _RGB if colour in names]
    if len(found) == len(_RGB):
        return (found[0], found[1], found[2])
    if not opaque or (found and len(opaque) > 1) or any(name in _OTHER_COLOURS for name in names):
        raise ConfigError(
            f"source.geotiff={uri!r} has bands of {', '.join(names)}: expected red, green and blue, or grey; "
            "convert it with gdal_translate"
        )
    if len(opaque) >= len(_RGB):
        return (opaque[0], opaque[1], opaque[2])
    grey = names.index("gray") + 1 if "gray" in names else opaque[0]
    return (grey, grey, grey)


@dataclass(frozen=True)
class _VirtualRaster:
    """A raster's colours as the three bands red, green and blue of a virtual one."""

    raster: Any
    colours: tuple[int, int, int]
    is_palette: bool
    is_inverted: bool

    def view(self, alpha: str | None) -> View:
        """Return it with a band of the raster, or its mask, as alpha; without one, the value for no data counts."""
        import rasterio

        root = ElementTree.Element(
            "VRTDataset", rasterXSize=str(self.raster.width), rasterYSize=str(self.raster.height)
        )
        ElementTree.SubElement(root, "SRS").text = self.raster.crs.to_wkt()
        ElementTree.SubElement(root, "GeoTransform").text = ", ".join(map(repr, self.raster.transform.to_gdal()))
        for component, number in enumerate(self.colours, start=1):
            nodata = self.raster.nodatavals[number - 1] if alpha is None else None
            extra: dict[str, str] = {}
            if self.is_palette:
                extra = {"ColorTableComponent": str(component)}
                nodata = None  # an index, no colour: the alpha band below
            elif self.is_inverted:
                extra = {"ScaleOffset": "255", "ScaleRatio": "-1"}
                nodata = None if nodata is None else 255 - nodata
            self._add(root, component, str(number), extra, nodata)
        if alpha is not None:
            self._add(root, 4, alpha, {}, None)
        elif self.is_palette:
            index = self.raster.nodatavals[self.colours[0] - 1]
            skipped = {} if index is None else {"NODATA": repr(index)}
            self._add(root, 4, str(self.colours[0]), {"ColorTableComponent": "4", **skipped}, None)
        virtual = rasterio.open(ElementTree.tostring(root, encoding="unicode"))
        return View(virtual, has_alpha=alpha is not None or self.is_palette)

    def _add(
        self, root: ElementTree.Element, number: int, source: str, extra: dict[str, str], nodata: float | None
    ) -> None:
        """Add a band that shows a band of the raster."""
        band = ElementTree.SubElement(root, "VRTRasterBand", dataType="Byte", band=str(number))
        ElementTree.SubElement(band, "ColorInterp").text = ("Red", "Green", "Blue", "Alpha")[number - 1]
        if nodata is not None:
            ElementTree.SubElement(band, "NoDataValue").text = repr(nodata)
        part = ElementTree.SubElement(band, "ComplexSource" if extra else "SimpleSource")
        ElementTree.SubElement(part, "SourceFilename", relativeToVRT="0").text = self.raster.name
        ElementTree.SubElement(part, "SourceBand").text = source
        for key, value in extra.items():
            ElementTree.SubElement(part, key).text = value

"""The field of view of a picture: what the caller, the file and the picture's shape say of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from s2s_ray.errors import ViewError
from s2s_ray.geo.camera import Projection
from s2s_ray.geo.images import Pixels
from s2s_ray.geo.metadata import PhotoMetadata
from s2s_ray.geo.seam import ends_meet

Origin = Literal["given", "file", "release", "estimated", "assumed"]
"""Where a value comes from: the caller, the file's metadata, the release's default, the search, the picture's shape."""
ASPECT_TOLERANCE = 0.02


def has_shape(height: int, width: float, model_height: int, model_width: int) -> bool:
    """Return whether a picture has the aspect ratio of a model's own images, within 2%."""
    return abs(width * model_height / (height * model_width) - 1) <= ASPECT_TOLERANCE


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a picture.

    Attributes:
        height, width: rows and columns.
        wide: at least twice as wide as high.
        of_model: has the aspect ratio of the model's own images.
        pixels: the picture, h w 3 uint8.
    """

    height: int
    width: int
    wide: bool
    of_model: bool
    pixels: Pixels

    def is_circle(self, projection: Projection | None) -> bool:
        """Return whether a picture of that projection is taken for the whole horizon by its shape."""
        if projection == "rectilinear" or not (self.wide or self.of_model):
            return False
        return projection == "equirectangular" or ends_meet(self.pixels)


def field_of_view(
    given: Projection | None, fov: float | None, photo: PhotoMetadata, shape: Shape, warnings: list[str]
) -> tuple[Projection, Origin, float, Origin, bool]:
    """Return a picture's projection and field of view in degrees, with their origins.

    Args:
        given, fov: what the caller says.
        photo: what the file says.
        shape: what the picture's shape says.
        warnings: takes a sentence for everything in the file that is not used.

    Returns: projection and origin, field of view and origin, and whether the crop in the file holds.

    Raises:
        ViewError: nothing says the field of view.
    """
    in_file = photo.projection
    if fov is not None and given is None and in_file == "rectilinear" and fov >= 180:
        warnings.append(f"the file's focal length is ignored: a photograph does not show the given fov={fov:g}")
        in_file = None
    if given is not None and in_file not in (None, given):
        warnings.append(f"the file's projection, {in_file}, is ignored: projection={given} was given")
        in_file = None
    fov_in_file = None if in_file is None else photo.fov
    projection: Projection | None = given or in_file
    origin: Origin = "given" if given else "file" if in_file else "assumed"
    if fov is None and fov_in_file is not None:
        return projection or "equirectangular", origin, fov_in_file, "file", True
    if fov is None:
        return projection or "equirectangular", origin, _assumed_fov(shape, projection, warnings), "assumed", False
    agrees = fov_in_file is not None and abs(fov_in_file - fov) <= 0.5
    if fov_in_file is not None and not agrees:
        warnings.append(f"the file's field of view, {fov_in_file:.4g} degrees, is ignored: fov={fov:g} was given")
    return projection or _assumed_projection(shape, fov), origin, fov, "given", agrees


def _assumed_fov(shape: Shape, projection: Projection | None, warnings: list[str]) -> float:
    if shape.is_circle(projection):
        return 360.0
    if projection is None and shape.wide and shape.of_model:  # as preparation writes them: the ends of 1% do not meet
        warnings.append(
            "the picture's ends do not meet, but it was taken for 360 degrees because it has the shape of the model's "
            "own panoramas; give fov if it shows less"
        )
        return 360.0
    size = f"the picture is {shape.width} x {shape.height} pixels (width x height)"
    need = "give fov, the degrees of the horizon that it shows"
    if shape.wide and projection is None:
        raise ViewError(
            f"fov is missing: {size} and its ends do not meet, so it is not the whole horizon, and its file does not "
            f"say its field of view; {need} (projection=cylindrical for a phone's panorama)"
        )
    kind = "" if projection is None else f" with projection={projection}"
    raise ViewError(f"fov is missing: {size}{kind}, and its file does not say its field of view; {need}")


def _assumed_projection(shape: Shape, fov: float) -> Projection:
    if fov == 360 or shape.is_circle(None):
        return "equirectangular"
    if shape.wide:
        return "cylindrical"
    return "rectilinear" if fov < 180 else "equirectangular"

"""What is known of a picture, by who says it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from s2s_ray.errors import ViewError
from s2s_ray.geo.camera import Crop
from s2s_ray.geo.metadata import PhotoMetadata
from s2s_ray.geo.query import Known, Query, settle
from s2s_ray.geo.seam import ends_meet
from s2s_ray.geo.views import ViewGeometry


def smooth(height: int, width: int, turns: float) -> NDArray[np.uint8]:
    """A picture whose columns run through so many turns of a circle; the ends of whole turns meet."""
    angles = np.arange(width) / width * 2 * np.pi * turns
    columns = np.stack([np.sin(angles), np.cos(angles), np.sin(angles)], -1) * 100 + 128
    return np.repeat(np.rint(columns)[None].astype(np.uint8), height, 0)


CIRCLE, SWEEP, PHOTO = smooth(60, 240, 1), smooth(60, 240, 0.7), smooth(60, 80, 0.2)
IN_FILE = PhotoMetadata((47, 8), 200.0, 5.0, "true", 65.0, "rectilinear", warnings=("first",))
SPHERE = PhotoMetadata(
    None, 30.0, 0.0, "true", 180.0, "equirectangular", 3.0, -1.0, crop=Crop(-90, 90, 45, -45), warnings=()
)


class TestQuery:
    def test_numbers_of_any_kind_become_floats(self) -> None:
        query = Query(np.float32(-12.5), np.int64(90), pitch=3, rows=[0, np.float64(0.5)])  # type: ignore[arg-type]
        assert query == Query(-12.5, 90.0, "auto", 3.0, None, (0.0, 0.5))
        assert {type(value) for value in (query.heading, query.fov, query.pitch)} == {float}

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"heading": 400}, "heading=400: expected -360 to 360 degrees, unknown or auto"),
            ({"heading": math.nan}, "heading=nan"),
            ({"heading": "north"}, "heading='north'"),
            ({"heading": True}, "heading=True"),
            ({"heading": None}, "heading=None"),
            ({"heading": np.zeros(2)}, "heading=array"),
            ({"fov": 0}, "fov=0: expected above 0"),
            ({"fov": 361}, "fov=361: expected 0 to 360"),
            ({"fov": "unknown"}, "fov='unknown'"),
            ({"fov": 180, "projection": "rectilinear"}, "fov=180 with projection=rectilinear: a plane shows less"),
            ({"projection": "fisheye"}, "projection='fisheye': expected one of equirectangular, rectilinear, cyl"),
            ({"projection": ["rectilinear"]}, r"projection=\['rectilinear'\]"),
            ({"pitch": 91}, "pitch=91: expected -90 to 90"),
            ({"roll": -181}, "roll=-181: expected -180 to 180"),
            ({"roll": "x" * 100}, r"roll='x+\.\.\.: expected"),
            ({"rows": (0.5, 0.5)}, "rows=0.5,0.5: expected 0 <= first"),
            ({"rows": (0.5,)}, r"rows=\(0\.5,\): expected two numbers"),
        ],
    )
    def test_values_that_cannot_be_are_named(self, values: dict[str, Any], words: str) -> None:
        with pytest.raises(ViewError, match=words):
            Query(**values)

    def test_texts_are_parsed(self) -> None:
        values = {"heading": " -12.5", "fov": "90", "projection": "rectilinear", "roll": "", "rows": "0.1,1", "k": "3"}
        assert Query.parse(values) == Query(-12.5, 90, "rectilinear", rows=(0.1, 1))
        assert Query.parse({"heading": "unknown", "fov": "auto", "pitch": None}) == Query("unknown", "auto")
        assert Query.parse({"heading": 7, "rows": (0, 1)}) == Query(7, rows=(0, 1))

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"heading": "north"}, "heading='north': expected a number"),
            ({"heading": "nan"}, "heading=nan"),
            ({"fov": "wide"}, "fov='wide'"),
            ({"rows": "0,x"}, "rows='x'"),
            ({"rows": "0.5"}, "expected two numbers"),
            ({"projection": "flat"}, "projection='flat'"),
        ],
    )
    def test_texts_that_are_no_value_are_named(self, values: dict[str, str], words: str) -> None:
        with pytest.raises(ViewError, match=words):
            Query.parse(values)


class TestHeading:
    def settle(self, query: Query, photo: PhotoMetadata | None, release: float | None) -> tuple[Any, Any, float]:
        known = settle(query, CIRCLE, photo, release_heading=release)
        return known.heading, known.heading_origin, known.heading_spread

    def test_the_first_who_says_it_decides(self) -> None:
        assert self.settle(Query(-10), IN_FILE, 7) == (350, "given", 0)
        assert self.settle(Query(), IN_FILE, 7) == (200, "file", 5)
        assert self.settle(Query(), PhotoMetadata(), 7) == (7, "release", 0)
        assert self.settle(Query(), None, None) == (None, None, 180)
        assert self.settle(Query("unknown"), IN_FILE, 7) == (None, None, 180)


class TestHeadingAlone:
    """A caller that gives a heading and nothing else gets what it always got."""

    @pytest.mark.parametrize("picture", [CIRCLE, SWEEP])
    @pytest.mark.parametrize("photo", [None, IN_FILE, SPHERE])
    def test_a_wide_picture_is_the_level_horizon(self, picture: NDArray[np.uint8], photo: PhotoMetadata | None) -> None:
        known = settle(Query(0), picture, photo)
        assert (known.fov, known.projection, known.pitch, known.roll, known.crop) == (
            360,
            "equirectangular",
            0,
            0,
            None,
        )
        assert (known.fov_origin, known.projection_origin) == ("assumed", "assumed")
        assert any("were not used because heading was given alone" in one for one in known.warnings) == bool(photo)
        assert any("ends do not meet" in one for one in known.warnings) == (picture is SWEEP)

    def test_a_field_of_view_by_the_file_is_not_alone(self) -> None:
        known = settle(Query(135, "auto"), SWEEP, SPHERE)
        assert (known.heading, known.fov, known.fov_origin, known.crop, known.pitch) == (
            135, 180, "file", SPHERE.crop, 3,
        )  # fmt: skip
        assert (known.warnings, settle(Query(135), SWEEP, SPHERE).fov) == ((), 360)
        assert settle(Query(135, "auto"), CIRCLE).fov == 360
        with pytest.raises(ViewError, match="ends do not meet"):
            settle(Query(135, "auto"), SWEEP)

    def test_the_warning_lists_what_was_not_used(self) -> None:
        def warning(photo: PhotoMetadata) -> str:
            return settle(Query(0), CIRCLE, photo).warnings[0]

        rest = "not used because heading was given alone; fov=auto uses the file"
        assert warning(PhotoMetadata(fov=90.0)) == f"the file's field of view was {rest}"
        assert warning(PhotoMetadata(fov=90.0, roll=3.0)) == f"the file's field of view and roll were {rest}"
        assert warning(SPHERE) == f"the file's field of view, pitch and roll were {rest}"

    def test_metadata_that_agree_are_no_warning(self) -> None:
        photo = PhotoMetadata(fov=360.0, projection="equirectangular", pitch=0.0, crop=Crop(-180, 180, 90, -90))
        assert settle(Query(0), CIRCLE, photo).warnings == ()

    def test_the_models_own_shape_is_the_horizon(self) -> None:
        photo = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
        assert ViewGeometry(32, 40).settle(Query(0), photo).fov == 360
        with pytest.raises(ViewError, match="fov is missing: the picture is 80 x 64 pixels"):
            ViewGeometry(32, 176).settle(Query(0), photo)

    def test_anything_else_given_uses_the_file(self) -> None:
        known = settle(Query(0, pitch=0), CIRCLE, SPHERE)
        assert (known.fov, known.fov_origin, known.pitch, known.roll, known.crop) == (180, "file", 0, -1, SPHERE.crop)


class TestFieldOfView:
    def test_a_circle_is_seen_by_its_ends(self) -> None:
        known = settle(Query(), CIRCLE)
        assert (known.fov, known.fov_origin, known.projection) == (360, "assumed", "equirectangular")
        with pytest.raises(ViewError, match=r"240 x 60 pixels .* ends do not meet, .* give fov"):
            settle(Query(), SWEEP)

    def test_the_file_says_it(self) -> None:
        known = settle(Query(), PHOTO, IN_FILE)
        assert (known.fov, known.fov_origin, known.projection, known.projection_origin) == (
            65, "file", "rectilinear", "file",
        )  # fmt: skip
        assert known.position == (47, 8)
        assert known.warnings == ("first",)
        sphere = settle(Query(), CIRCLE, SPHERE)
        assert (sphere.fov, sphere.crop, sphere.pitch, sphere.roll) == (180, SPHERE.crop, 3, -1)
        assert settle(Query(pitch=9), CIRCLE, SPHERE).pitch == 9

    def test_a_narrow_picture_needs_it(self) -> None:
        with pytest.raises(ViewError, match="fov is missing: the picture is 80 x 60 pixels"):
            settle(Query(), PHOTO)
        with pytest.raises(ViewError, match="with projection=cylindrical"):
            settle(Query(projection="cylindrical"), SWEEP)
        with pytest.raises(ViewError, match="with projection=equirectangular"):
            settle(Query(projection="equirectangular"), PHOTO)

    @pytest.mark.parametrize(
        ("picture", "fov", "projection"),
        [
            (PHOTO, 70, "rectilinear"), (PHOTO, 200, "equirectangular"), (SWEEP, 200, "cylindrical"),
            (SWEEP, 90, "cylindrical"), (SWEEP, 360, "equirectangular"), (CIRCLE, 300, "equirectangular"),
        ],
    )  # fmt: skip
    def test_the_projection_follows(self, picture: NDArray[np.uint8], fov: float, projection: str) -> None:
        known = settle(Query(0, fov), picture)
        assert (known.projection, known.projection_origin, known.fov_origin) == (projection, "assumed", "given")

    def test_said_projections_are_kept(self) -> None:
        assert settle(Query(projection="equirectangular"), SWEEP).fov == 360
        assert settle(Query(projection="cylindrical"), CIRCLE).fov == 360
        assert settle(Query(fov=200, projection="cylindrical"), PHOTO).projection == "cylindrical"

    def test_contradictions_with_the_file_are_warnings(self) -> None:
        known = settle(Query(0, 90), PHOTO, IN_FILE)
        assert (known.fov, known.projection, known.projection_origin) == (90, "rectilinear", "file")
        assert known.warnings[1:] == ("the file's field of view, 65 degrees, is ignored: fov=90 was given",)
        known = settle(Query(0, 360), CIRCLE, IN_FILE)
        assert (known.fov, known.projection) == (360, "equirectangular")
        assert "focal length is ignored" in known.warnings[1]
        known = settle(Query(0, 90, "rectilinear"), CIRCLE, SPHERE)
        assert (known.crop, known.fov) == (None, 90)
        assert "the file's projection, equirectangular, is ignored" in known.warnings[0]
        known = settle(Query(0, 300), CIRCLE, SPHERE)
        assert (known.crop, known.fov, known.projection) == (Crop(-150, 150, 37.5, -37.5), 300, "equirectangular")

    def test_rows_have_the_scale_of_columns(self) -> None:
        assert settle(Query(0, 90), smooth(50, 200, 0.3)).crop is None  # a sweep
        assert settle(Query(0, 90, "equirectangular"), smooth(50, 100, 0.3)).crop == Crop(-45, 45, 22.5, -22.5)
        assert settle(Query(), smooth(30, 240, 1)).crop == Crop(-180, 180, 22.5, -22.5)
        assert settle(Query(), smooth(119, 240, 1)).crop == Crop(-180, 180, 90, -90)
        assert settle(Query(0), smooth(30, 240, 1)).crop is None
        assert settle(Query(rows=(0, 1)), smooth(30, 240, 1)).crop is None

    def test_the_models_own_shape_and_its_parts_have_its_elevations(self) -> None:
        geometry = ViewGeometry(30, 240)
        assert geometry.settle(Query(), smooth(30, 240, 1)).crop is None
        assert geometry.settle(Query(0, 180, "equirectangular"), smooth(30, 120, 1)).crop is None
        assert geometry.settle(Query(0, 180, "equirectangular"), smooth(30, 240, 1)).crop is not None

    def test_more_than_a_sphere_is_refused(self) -> None:
        with pytest.raises(ViewError, match=r"fov=360: .* 80 x 60 .* would show 270 degrees from top to bottom"):
            settle(Query(0, 360), PHOTO)
        assert settle(Query(0, 360, rows=(0.2, 0.8)), PHOTO).fov == 360

    @pytest.mark.parametrize("pixels", [np.zeros((0, 10, 3), np.uint8), np.zeros((40, 80), np.uint8)])
    def test_other_arrays_are_refused(self, pixels: NDArray[np.uint8]) -> None:
        with pytest.raises(ViewError, match="expected h w 3, uint8"):
            settle(Query(0, 90), pixels)


def test_a_camera_has_its_edges_and_its_axis() -> None:
    photo = Known(10, "given", 0, 90, "given", "rectilinear", "given", 5, 6).camera(100, 200)
    assert photo.edges == pytest.approx(Crop(-45, 45, math.degrees(math.atan(0.5)), -math.degrees(math.atan(0.5))))
    assert (photo.heading, photo.pitch, photo.roll) == (10, 5, 6)
    crop = Known(10, "file", 0, 90, "file", "equirectangular", "file", crop=Crop(0, 90, 30, -10)).camera(40, 90)
    assert crop.heading == -35  # the middle column lies 45 degrees to the right of the axis
    assert Known(None, None, 180, 360, "assumed", "cylindrical", "assumed").camera(100, 628).closed


class TestEnds:
    """The ends of pictures with detail of a few pixels."""

    @staticmethod
    def textured(height: int, width: int, seed: int) -> NDArray[np.uint8]:
        """A closed picture of waves around the circle, long ones stronger."""
        rng = np.random.default_rng(seed)
        angles = np.arange(width) / width * 2 * np.pi
        waves = np.arange(1, 40)
        strength = rng.normal(size=(height, 3, 39)) / waves
        picture = (strength[..., None] * np.cos(waves[:, None] * angles + rng.uniform(0, 7, (39, 1)))).sum(2)
        return np.clip(128 + picture.transpose(0, 2, 1) * 60, 0, 255).astype(np.uint8)

    @pytest.mark.parametrize("seed", range(10))
    def test_they_meet_in_a_circle_wherever_it_is_cut(self, seed: int) -> None:
        circle = np.roll(self.textured(64, 1024, seed), seed * 100, 1)
        assert ends_meet(circle)
        assert not ends_meet(circle[:, :900])
        assert not ends_meet(circle[:, 100:612])

    def test_plain_pictures_meet(self) -> None:
        assert ends_meet(np.full((20, 90, 3), 7, np.uint8))
        assert ends_meet(np.full((1, 1, 3), 7, np.uint8))


class TestStoredGeometry:
    def test_later_fields_are_stored_only_if_they_say_something(self) -> None:
        assert "elevations" not in ViewGeometry(32, 176).tree()
        assert "default_heading" not in ViewGeometry(32, 176).tree()
        geometry = ViewGeometry(32, 176, elevations=(30.0, -20.0), default_heading=0.0)
        assert geometry.tree()["elevations"] == [30.0, -20.0]
        assert ViewGeometry.parse(geometry.tree()) == geometry
        assert geometry.settle(Query(), CIRCLE).heading_origin == "release"

    @pytest.mark.parametrize("elevations", [(0, 10), (100, 0), (0, -91), (math.nan, 0)])
    def test_impossible_elevations_are_refused(self, elevations: tuple[float, float]) -> None:
        with pytest.raises(ValueError, match="elevations"):
            ViewGeometry(32, 176, elevations=elevations)

    def test_the_span_follows_from_the_rows_of_a_sphere(self) -> None:
        assert ViewGeometry(32, 176).span == (45, -45)
        assert ViewGeometry(32, 176, (0.0, 1.0)).span == (45, -45)
        assert ViewGeometry(32, 176, (0.25, 0.75)).span == (45, -45)
        assert ViewGeometry(32, 176, (0.2, 0.9)).span == pytest.approx((54, -72))
        assert ViewGeometry(32, 176, (0.2, 0.9), elevations=(30, -30)).span == (30, -30)

"""Protocols of evaluation: what is known of the panoramas that are asked, and the figures measured under each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import AfterValidator

from s2s_ray.errors import InputError

ALIGNED = "aligned"
LARGEST_OFFCENTRE_M = 1000.0
_EXAMPLES = "aligned, heading, fov=180, offcentre=16, or several joined by +, such as heading+fov=90"

RECALL = "recall_at_1"
RECALLS = (RECALL, "recall_at_5", "recall_at_10", "recall_at_1_percent")
SHARES = (
    *RECALLS,
    "heading_within_5",
    "heading_within_10",
    "own_heading_within_5",
    "own_heading_within_10",
    "metres_within_5",
    "metres_within_10",
    "metres_within_25",
)
"""Figures that are fractions in [0, 1], and better if higher."""
ERRORS = ("median_rank", "heading_error_median", "own_heading_error_median", "metres_median", "found_metres_median")
"""Figures that are better if lower."""
FIGURES = (*SHARES, *ERRORS)
OF_FOUND = ("heading_error_median", "heading_within_5", "heading_within_10", "found_metres_median")
"""Figures of the found queries only. A model that finds fewer may have better ones, so they cannot choose a model."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """What is known of the panoramas that are asked, and where they were taken.

    Attributes:
        heading: whether it is unknown, so that each panorama is turned by a random angle and all headings are searched.
        fov: degrees of the horizon that are seen, a random part of it; 360 is all of it.
        offcentre_m: the panoramas are taken anywhere within this many metres of the tile's centre, and positions within
            each tile are searched; None: at the centre.
    """

    heading: bool = False
    fov: float = 360.0
    offcentre_m: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fov <= 360:  # false for NaN
            raise InputError(f"fov={self.fov:g}: expected a field of view above 0 and at most 360 degrees")
        if self.offcentre_m is not None and not 0 < self.offcentre_m <= LARGEST_OFFCENTRE_M:
            raise InputError(
                f"offcentre={self.offcentre_m:g}: expected above 0 and at most {LARGEST_OFFCENTRE_M:g} metres"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `aligned`, or one or several of `heading`, `fov=DEGREES` and `offcentre=METRES` joined by `+`.

        Raises:
            InputError: another text, a part that stands twice, or a value out of range.
        """
        given: dict[str, float] = {}
        for part in text.strip().split("+"):
            name, equals, number = (piece.strip() for piece in part.partition("="))
            if name in given:
                raise InputError(f"protocol {text!r}: {name} stands twice")
            if name in (ALIGNED, "heading") and not equals:
                given[name] = 0.0
            elif name in ("fov", "offcentre") and equals:
                given[name] = _number(text, name, number)
            else:
                raise InputError(f"protocol {text!r}: {part.strip()!r} is unknown; expected {_EXAMPLES}")
        if ALIGNED in given and len(given) > 1:
            raise InputError(f"protocol {text!r}: aligned stands alone; leave it out")
        if given.get("fov") == 360:
            raise InputError(f"protocol {text!r}: fov=360 is the whole horizon; leave it out")
        try:
            return cls("heading" in given, given.get("fov", 360.0), given.get("offcentre"))
        except InputError as error:
            raise InputError(f"protocol {text!r}: {error}") from None

    @property
    def name(self) -> str:
        """The text that `parse` reads back, the same for equal protocols."""
        parts = ["heading"] if self.heading else []
        parts += [f"fov={self.fov:.12g}"] if self.fov < 360 else []
        parts += [] if self.offcentre_m is None else [f"offcentre={self.offcentre_m:.12g}"]
        return "+".join(parts) or ALIGNED

    @property
    def is_random(self) -> bool:
        """Whether the queries depend on a seed."""
        return self != type(self)()


def metric(text: str) -> tuple[Protocol | None, str]:
    """Split the name of a validation metric: `recall_at_1`, or `PROTOCOL.FIGURE` such as `heading.recall_at_1`.

    Returns: the protocol, None for the figures that every validation has, and the figure.

    Raises:
        InputError: no such protocol or figure, one that the protocol never has, or one of the found queries alone.
    """
    name, dot, figure = text.rpartition(".")
    known = tuple(one for one in FIGURES if one not in OF_FOUND) if dot else (*RECALLS, "median_rank")
    if dot and figure in OF_FOUND:
        instead = "metres_median" if figure == "found_metres_median" else f"own_{figure}"
        raise InputError(
            f"metric {text!r}: {figure} counts the queries that are found alone, so that finding fewer may improve it; "
            f"choose {instead}, which counts all"
        )
    if figure not in known:
        raise InputError(
            f"metric {text!r}: {figure!r} is unknown; expected {', '.join(known)}, after PROTOCOL. or alone"
        )
    protocol = Protocol.parse(name) if dot else None
    if protocol is not None and figure.startswith("own_heading") and not protocol.heading:
        raise InputError(
            f"metric {text!r}: the heading is known under the protocol {protocol.name}, so that it never has {figure}; "
            "choose a protocol with heading"
        )
    return protocol, figure


def metric_name(text: str) -> str:
    """Return the name of a metric with its protocol's own name, as a history has it. Raises InputError."""
    protocol, figure = metric(text)
    return figure if protocol is None else f"{protocol.name}.{figure}"


Metric = Annotated[str, AfterValidator(metric_name)]
"""The name of a validation metric, see `metric`."""


def direction(text: str) -> Literal["maximize", "minimize"]:
    """Return the direction in which a validation metric improves."""
    return "minimize" if metric(text)[1] in ERRORS else "maximize"


def _number(text: str, name: str, number: str) -> float:
    try:
        return float(number)
    except ValueError:
        unit = "degrees" if name == "fov" else "metres"
        raise InputError(f"protocol {text!r}: {name}={number!r}: expected a number of {unit}") from None

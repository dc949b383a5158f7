"""Self-contained HTML pages: the reports of runs and sweeps share one base template."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import jinja2

from s2s_ray.version import code_version


def render(template: str, *, pictures: Mapping[str, bytes], headings: Mapping[str, str], **values: Any) -> bytes:
    """Return a page that fetches nothing when it is read.

    Args:
        template: name of a file in `s2s_ray/evaluation/templates` that extends `base.html`.
        pictures: PNG files by name, shown in their order.
        headings: headings of the pictures by name; default: the name in words.
        values: variables of the template. The base needs `settings`, the configuration as text.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("s2s_ray.evaluation"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    encoded = {name: base64.b64encode(png).decode() for name, png in pictures.items()}
    page = environment.get_template(template)
    return page.render(pictures=encoded, headings=headings, version=code_version(), **values).encode()

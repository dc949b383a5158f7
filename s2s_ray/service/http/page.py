"""The web page at `/` and the documentation at `/docs`; neither loads anything from another host."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from s2s_ray.service.settings import ServeArgs

STATIC = Path(__file__).parents[1] / "static"
VENDOR = STATIC / "vendor"  # created by `python -m s2s_ray.service.deploy.vendor`
_NO_DOCS = """<!doctype html><html lang="en"><title>s2s-ray</title><p>The interactive documentation is not installed:
<code>python -m s2s_ray.service.deploy.vendor</code> installs it.
The API is described in <a href="openapi.json">openapi.json</a>."""


def add_to(api: FastAPI, args: ServeArgs) -> None:
    """Add the routes of the page to the application."""
    text = (STATIC / "index.html").read_text(encoding="utf-8")
    settings = {"url": args.base_map_url, "attribution": args.base_map_attribution}
    text = text.replace("BASE_MAP", escape(json.dumps(settings)))
    hosts = _origin(args.base_map_url)
    policy = f"default-src 'self'; img-src 'self' data: blob: {hosts}; style-src 'self' 'unsafe-inline'"

    @api.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(text, headers={"Content-Security-Policy": policy.strip()})

    @api.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        if not (VENDOR / "swagger-ui-bundle.js").is_file():
            return HTMLResponse(_NO_DOCS)
        root = request.scope.get("root_path", "").rstrip("/")
        return get_swagger_ui_html(
            openapi_url=f"{root}/openapi.json",
            title="s2s-ray",
            swagger_js_url=f"{root}/static/vendor/swagger-ui-bundle.js",
            swagger_css_url=f"{root}/static/vendor/swagger-ui.css",
            swagger_favicon_url=f"{root}/static/icon.svg",
        )

    api.mount("/static", StaticFiles(directory=STATIC), name="static")


def _origin(url: str | None) -> str:
    """Return scheme and host of a tile server; empty if there is none, or it is this service itself."""
    if url is None:
        return ""
    parts = urlsplit(url.replace("{s}", "*"))
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""

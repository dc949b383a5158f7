"""Parts of the OpenAPI document that FastAPI does not derive from the signatures of the routes."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from s2s_ray.service.schemas import Error

Responses = dict[int | str, dict[str, Any]]

BINARY = {"schema": {"type": "string", "format": "binary"}}
INVALID_REQUEST = {
    400: "Undecodable image, or an invalid, unknown or repeated parameter or field of the form",
    406: "Accept names no available type",
    408: "Not completed within the limit of the proxy",
    413: "More bytes, pixels or images than allowed",
    415: "Content-Type that is not an image",
    422: "Image of the wrong shape",
}
NOT_UNDERSTOOD = {400: "A query parameter that is unknown or given twice, or a body where none is expected"}
UNAUTHORIZED = {401: "No token or an unknown one, if the service is configured with tokens"}
UNAVAILABLE = {
    503: "Overloaded, or no release loaded; see Retry-After",
    504: "Not completed within S2S-Timeout",
}
PINNED = {409: "The service is pinned to one release"}


def errors(*tables: dict[int, str]) -> Responses:
    """Return the `responses` of a route that fails with these statuses, each with its meaning."""
    return {status: {"model": Error, "description": text} for table in tables for status, text in table.items()}


def content(description: str, **kinds: Any) -> Responses:
    """Return the `responses` of a route that succeeds with these media types."""
    return {200: {"description": description, "content": kinds}}


def inlined(model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a model without references, for a media type whose model FastAPI does not know."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolved(tree: Any) -> Any:
        if isinstance(tree, dict):
            if "$ref" in tree:
                return resolved(definitions[tree["$ref"].rpartition("/")[2]])
            return {key: resolved(value) for key, value in tree.items()}
        return [resolved(value) for value in tree] if isinstance(tree, list) else tree

    result: dict[str, Any] = resolved(schema)
    return result


def remove_validation_errors(api: FastAPI) -> None:
    """Remove the 422 that FastAPI documents for invalid parameters: this service responds with 400."""
    document = api.openapi()
    for operations in document["paths"].values():
        for operation in operations.values():
            responses = operation["responses"]
            described = responses.get("422", {}).get("content", {})
            if described.get("application/json", {}).get("schema", {}).get("$ref", "").endswith("/HTTPValidationError"):
                del responses["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)

"""The API against its own OpenAPI document: schemathesis generates the requests from it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import schemathesis
from hypothesis import settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from s2s_ray.geo.images import encode
from s2s_ray.service.http.application import create_api
from tests.support.fake_service import Fakes, flat

PICTURES = [encode(flat(40, 100), "png"), encode(flat(50, 50), "png"), encode(flat(40, 100), "jpeg"), b"", b"no image"]
for kind in ("image/png", "image/jpeg", "image/webp", "image/tiff", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, st.sampled_from(PICTURES))

application = create_api(Fakes().service(ThreadPoolExecutor(2)))
document = schemathesis.openapi.from_asgi("/openapi.json", application)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of schemathesis itself
@(document.exclude(path="/metrics").parametrize())
@settings(max_examples=8)
def test_responses_are_as_documented(case: schemathesis.Case) -> None:
    if case.method == "POST" and isinstance(case.body, list | dict) and case.media_type != "multipart/form-data":
        return
    response = case.call()
    assert response.status_code not in (500, 501, 502), response.text
    case.validate_response(
        response, checks=[status_code_conformance, content_type_conformance, response_schema_conformance]
    )


def test_the_document_has_examples_and_every_error() -> None:
    tree = application.openapi()
    for path in ("/v1/embed/street", "/v1/embed/satellite", "/v1/synthesize", "/v1/localize"):
        operation = tree["paths"][path]["post"]
        assert {"200", "400", "401", "406", "413", "415", "422", "503", "504"} <= set(operation["responses"])
        assert "multipart/form-data" in operation["requestBody"]["content"]
        assert all(parameter.get("description") for parameter in operation["parameters"]), path
    assert "examples" in tree["components"]["schemas"]["OneLocalization"]
    references = {text.split('"')[0] for text in json.dumps(tree).split('"$ref": "#/components/schemas/')[1:]}
    assert references <= set(tree["components"]["schemas"])
    assert "HTTPValidationError" not in json.dumps(tree), "invalid parameters get a 400"

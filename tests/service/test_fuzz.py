"""Damaged uploads against the application in process: each gets a documented response, and none fails the service.

`make fuzz` sends 20,000 of them, `make test` the first 500.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from s2s_ray.service.http.application import create_api
from tests.support.fake_service import Fakes
from tests.support.uploads import uploads

COUNT = int(os.environ.get("S2S_FUZZ", "500"))
DOCUMENTED = {200, 400, 406, 413, 415, 422}


@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns about damaged TIFF and EXIF
def test_no_upload_fails_the_service() -> None:
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it logs a line for each damaged form
    statuses: Counter[int] = Counter()

    async def send() -> None:
        with ThreadPoolExecutor(2) as decoders:
            transport = httpx2.ASGITransport(create_api(Fakes().service(decoders)))
            async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
                for number, (path, params, headers, content) in enumerate(uploads(0, COUNT)):
                    response = await client.post(path, params=params, headers=headers, content=content)
                    statuses[response.status_code] += 1
                    assert response.status_code in DOCUMENTED, (number, response.status_code, response.text)
                    if response.status_code != 200:
                        assert response.json()["error"].endswith("."), (number, response.text)

    asyncio.run(send())
    print(f"\n{COUNT} uploads: {dict(sorted(statuses.items()))}")
    assert set(statuses) >= {200, 400, 415, 422}, "all kinds of damage occur"
    assert statuses[200] > COUNT // 20

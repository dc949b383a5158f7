"""A client of the HTTP service: images in, arrays and matches out. It needs neither PyTorch, Ray, FAISS nor pyarrow.

    client = Client("http://127.0.0.1:8000")
    [location] = client.locate(["photograph.jpg"])
    if location.fix is not None:
        print(location.fix.latitude, location.fix.longitude, location.fix.radius_m)

Requests that change nothing are repeated after a lost replica, a restart or an overload, until `timeout_s` expires or
the service asks for more patience than that. A change of the release is sent once.
"""

from s2s_ray.client.client import Client
from s2s_ray.client.location import ServedFix, ServedLocation, ServedMatch, ServedPeak, ServedQuery
from s2s_ray.client.parameters import ImageLike

__all__ = [
    "Client",
    "ImageLike",
    "ServedFix",
    "ServedLocation",
    "ServedMatch",
    "ServedPeak",
    "ServedQuery",
]

"""The street embedding of a checkpoint behind LitServe, for `serve.py litserve`.

python benchmarks/serve_litserve.py CHECKPOINT PORT MAX_BATCH WORKERS
"""

import sys

import litserve
import torch
from fastapi import Request

from s2s_ray.geo.images import decode
from s2s_ray.inference import Embedder


class StreetEmbedding(litserve.LitAPI):
    """POST /predict: an image in the form field `image`; the response is {"embeddings": [[...]]}."""

    def __init__(self, checkpoint: str, max_batch: int) -> None:
        super().__init__(max_batch_size=max_batch, batch_timeout=0.005)
        self._checkpoint = checkpoint

    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        self._embedder = Embedder.load(self._checkpoint, device)
        self._embedder.specialise("street")

    # LitServe evaluates this annotation: it must not be a string, as with `from __future__ import annotations`.
    def decode_request(self, request: Request) -> torch.Tensor:
        return self._embedder.geometry.street(decode(request["image"].file.read()), 0.0, None)

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(inputs)

    def predict(self, views: torch.Tensor):
        return self._embedder.embed_street(views if views.dim() == 4 else views[None])

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"embeddings": [output.reshape(-1).tolist()]}


if __name__ == "__main__":
    checkpoint, port, max_batch, workers = sys.argv[1:]
    api = StreetEmbedding(checkpoint, int(max_batch))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(workers), timeout=120)
    server.run(host="127.0.0.1", port=int(port), num_api_servers=1, generate_client_file=False)

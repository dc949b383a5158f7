"""The street embedding of a checkpoint behind LitServe, for `serve.py litserve`: its own way of doing what ours does.

python benchmarks/serve_litserve.py CHECKPOINT PORT MAX_BATCH BATCH_WAIT_S THREADS
"""

from __future__ import annotations

import sys

import litserve
import torch
from fastapi import Request

from s2s_ray.data.images import decode
from s2s_ray.inference import Embedder


class StreetEmbedding(litserve.LitAPI):
    """POST /predict with the image in the form's field `image` -> {"embeddings": [[...]]}."""

    def __init__(self, checkpoint: str, threads: int, max_batch: int, batch_wait_s: float) -> None:
        super().__init__(max_batch_size=max_batch, batch_timeout=batch_wait_s)
        self._checkpoint, self._threads = checkpoint, threads

    def setup(self, device: str) -> None:
        torch.set_num_threads(self._threads)
        self._embedder = Embedder.load(self._checkpoint, device)
        self._embedder.specialise("street")

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
    checkpoint, port, max_batch, batch_wait_s, threads = sys.argv[1:]
    api = StreetEmbedding(checkpoint, int(threads), int(max_batch), float(batch_wait_s))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(host="127.0.0.1", port=int(port), num_api_servers=1, generate_client_file=False)

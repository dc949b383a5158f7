"""What the service costs: real HTTP against the bare model on the same cores, in one run.

    python benchmarks/serve.py throughput          every endpoint with the `paper` model: at least 0.9 of the model
    python benchmarks/serve.py overhead            what HTTP adds to the median with the `tiny` model, one caller
    python benchmarks/serve.py litserve            LitServe serving the same model (pip install "s2s-ray[bench]")
    python benchmarks/serve.py start               from no replica to the first answer

Images are JPEGs of a procedural city in CVUSA's sizes: panoramas 224 x 1232, tiles 750 x 750. The model has random
weights. `python -m serve` runs as it would for a user, with one replica of each deployment, behind Ray's HAProxy unless
`--proxy python` is given. Arms alternate, and a ratio is the median of the rounds'. "Bare" is what the deployments
call, with as many threads and as many images at a time, on views that are ready; localisation adds the search. The
service is up while the bare model is measured, and what it takes of the cores at rest is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pyarrow as pa
import torch
import yaml
from http_load import Question, closed, opened

from s2s_ray import storage
from s2s_ray.checkpoint import save_model
from s2s_ray.config import load_config
from s2s_ray.data.images import decode, encode
from s2s_ray.data.sources import open_source
from s2s_ray.index import IndexInfo, ReferenceIndex
from s2s_ray.inference import Embedder, Synthesizer
from s2s_ray.model.s2s import S2S
from s2s_ray.registry import fingerprint

ROOT = Path(__file__).resolve().parents[1]
TILES, IMAGES, WAIT_S = 1000, 8, 0.02
GOAL, ADDED_MS = 0.9, {"embed/street": 5.0, "embed/satellite": 5.0, "localize?k=5": 12.0}
JPEG = {"content-type": "image/jpeg"}


class Work(NamedTuple):
    """An endpoint and the work behind it."""

    question: Question
    views: torch.Tensor
    bare: Callable[[torch.Tensor], Any]
    whole: Callable[[bytes], Any]
    """From the JPEG to the answer, in this process."""


class Release(NamedTuple):
    """A model with random weights, and an index of random descriptors that fits it."""

    checkpoint: str
    index: str

    @classmethod
    def made(cls, preset: str, folder: Path) -> Release:
        torch.manual_seed(0)
        model = S2S(load_config(preset, ["model.street_weights=random"]).model).eval()
        meta = {"run": "benchmark", "step": 0, "epoch": 0, "metrics": {}}
        save_model(model, meta, folder / "local")
        made = cls(str(folder / "checkpoint"), str(folder / "index"))
        storage.publish(folder / "local", made.checkpoint)
        size = model.config.descriptor_size
        info = IndexInfo(
            dimension=size,
            count=TILES,
            checkpoint=fingerprint(made.checkpoint),
            dataset="random",
            dataset_digest="-",
            split="test",
        )
        columns: dict[str, Any] = {"id": [f"tile-{row}" for row in range(TILES)]}
        columns |= {name: np.linspace(50, 51, TILES) for name in ("latitude", "longitude", "easting", "northing")}
        table = pa.table({**columns, "zone": pa.array([32632] * TILES, pa.int32())})
        descriptors = np.random.default_rng(0).normal(size=(TILES, size)).astype(np.float32)
        descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
        ReferenceIndex.build(info, descriptors, table).save(made.index)
        return made


def works(release: Release, panoramas: list[bytes], tiles: list[bytes]) -> dict[str, Work]:
    """The endpoints by name, each beside what it does without HTTP."""
    embedder, synthesizer = Embedder.load(release.checkpoint), Synthesizer.load(release.checkpoint)
    index = ReferenceIndex.load(release.index)
    geometry = embedder.geometry
    street = torch.stack([geometry.street(decode(body), 0.0, None) for body in panoramas])
    polar = torch.stack([geometry.satellite(decode(body), "auto") for body in tiles])
    npy = {**JPEG, "accept": "application/x-npy"}

    def located(views: torch.Tensor) -> Any:
        return [index.search(descriptor[None], 5) for descriptor in embedder.embed_street(views)]

    return {
        "embed/street": Work(
            Question("/v1/embed/street", panoramas, npy),
            street,
            embedder.embed_street,
            lambda body: embedder.street([decode(body)]),
        ),
        "embed/satellite": Work(
            Question("/v1/embed/satellite", tiles, npy),
            polar,
            embedder.embed_satellite,
            lambda body: embedder.satellite([decode(body)]),
        ),
        "synthesize": Work(
            Question("/v1/synthesize", tiles, {**JPEG, "accept": "image/jpeg"}),
            polar,
            synthesizer.synthesize,
            lambda body: encode(synthesizer.street([decode(body)])[0], "jpeg"),
        ),
        "localize?k=5": Work(
            Question("/v1/localize?k=5", panoramas, JPEG),
            street,
            located,
            lambda body: index.search(embedder.street([decode(body)]), 5),
        ),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(command: list[str], url: str, path: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server until the block ends; it is up when `path` answers 200."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    running = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(url + path, trust_env=False, timeout=5).status_code == 200:
                    break
            if running.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{' '.join(command)} did not come up")
            time.sleep(0.5)
        yield running
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(60)


@contextlib.contextmanager
def service(folder: Path, release: Release, options: argparse.Namespace, **changes: Any) -> Iterator[str]:
    """`python -m serve`; gives its URL."""
    model = {"num_cpus": 0.1, "max_replicas": 1, "max_batch": options.batch, "batch_wait_s": WAIT_S}
    single = {"num_cpus": 0.1, "max_replicas": 1}
    deployments = {"street": model, "satellite": model, "synthesis": model, "search": single, "ingress": single}
    tree = {**release._asdict(), "threads": options.threads, "access_log": False, **deployments, **changes}
    settings = folder / "settings.yaml"
    settings.write_text(yaml.safe_dump(tree), encoding="utf-8")
    port = free_port()
    command = [sys.executable, "-m", "serve", "--settings", str(settings), "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with process(command + ["--haproxy"] * (options.proxy == "haproxy"), url, "/readyz"):
        time.sleep(5)  # what starts beside it has started
        yield url


def idle_share(seconds: float = 5) -> float:
    """Share of one core that everything on this machine takes while nobody asks."""

    def busy() -> float:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        return (sum(fields[:3]) + sum(fields[5:8])) / os.sysconf("SC_CLK_TCK")

    before = busy()
    time.sleep(seconds)
    return (busy() - before) / seconds


def bare_rate(work: Work, batch: int, seconds: float) -> float:
    """Images a second of the model alone, in batches."""
    views = work.views.repeat(-(-batch // len(work.views)), 1, 1, 1)[:batch]
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        work.bare(views)
        count += batch
    return count / (time.perf_counter() - begin)


def throughput(work: dict[str, Work], url: str, options: argparse.Namespace) -> bool:
    """Every endpoint with enough callers to fill two batches, then at four fifths of that rate."""
    print(f"the service at rest takes {idle_share():.2f} of a core")
    print("endpoint          bare, /s   HTTP, /s   share (goal 0.9)   p50    p95   open loop at 0.8: p50    p95, ms")
    met = True
    for name, one in work.items():
        closed(url, one.question, 2 * options.batch, options.seconds / 2)
        bare_rate(one, options.batch, 1)
        rounds = []
        for _ in range(options.repetitions):
            alone = bare_rate(one, options.batch, options.seconds)
            rounds.append((alone, closed(url, one.question, 2 * options.batch, options.seconds)))
        share = statistics.median(told.rate / alone for alone, told in rounds)
        rate = statistics.median(told.rate for _, told in rounds)
        told, alone = rounds[-1][1], statistics.median(alone for alone, _ in rounds)
        steady = opened(url, one.question, 0.8 * rate, options.seconds)
        times = [told.milliseconds(50), told.milliseconds(95), steady.milliseconds(50), steady.milliseconds(95)]
        print(
            f"{name:16s} {alone:9.2f} {rate:10.2f} {share:18.2f} {times[0]:5.0f} {times[1]:6.0f} "
            f"{times[2]:23.0f} {times[3]:6.0f}"
            + (f"   {told.refused + steady.refused} refused" if told.refused + steady.refused else ""),
            flush=True,
        )
        met &= share >= GOAL
    return met


def overhead(work: dict[str, Work], url: str, options: argparse.Namespace) -> bool:
    """One caller: the median over HTTP less that of the same work, from JPEG to answer, in this process."""
    print(f"the service at rest takes {idle_share():.2f} of a core")
    print("endpoint          in process, ms   HTTP, ms   added, ms   goal")
    met = True
    for name, one in work.items():
        closed(url, one.question, 1, 2)
        rounds = []
        for _ in range(options.repetitions):
            alone = []
            for turn in range(round(options.seconds * 20)):
                body = one.question.bodies[turn % IMAGES]
                begin = time.perf_counter()
                one.whole(body)
                alone.append(time.perf_counter() - begin)
            rounds.append(
                (statistics.median(alone) * 1e3, closed(url, one.question, 1, options.seconds).milliseconds(50))
            )
        alone, over = (statistics.median(values) for values in zip(*rounds, strict=True))
        added, goal = statistics.median(http - here for here, http in rounds), ADDED_MS.get(name)
        print(f"{name:16s} {alone:15.1f} {over:10.1f} {added:11.1f}   {goal or '-'}", flush=True)
        met &= goal is None or added <= goal
    return met


def litserve(release: Release, panoramas: list[bytes], url: str, options: argparse.Namespace) -> bool:
    """Street embedding as JSON from multipart forms, by both."""
    port, boundary = free_port(), "x" * 24
    disposition = 'Content-Disposition: form-data; name="image"; filename="a.jpg"'
    head = f"--{boundary}\r\n{disposition}\r\nContent-Type: image/jpeg\r\n\r\n".encode()
    bodies = [head + body + f"\r\n--{boundary}--\r\n".encode() for body in panoramas]
    form = {"content-type": f"multipart/form-data; boundary={boundary}"}
    program = str(ROOT / "benchmarks" / "serve_litserve.py")
    command = [sys.executable, program, release.checkpoint, str(port), str(options.batch), str(WAIT_S)]
    theirs = f"http://127.0.0.1:{port}"
    with process([*command, str(options.threads)], theirs, "/health"):
        print("callers   ours, /s   LitServe, /s   ratio (goal 1)   ours p50, ms   LitServe p50, ms")
        met = True
        for callers in (1, 2 * options.batch):
            rounds = []
            for turn in range(options.repetitions + 1):
                arms = [(url, Question("/v1/embed/street", bodies, form)), (theirs, Question("/predict", bodies, form))]
                told = [closed(*arm, callers, options.seconds) for arm in (arms if turn % 2 else arms[::-1])]
                rounds.append(told if turn % 2 else told[::-1])
            rounds = rounds[1:]
            ratio = statistics.median(ours.rate / other.rate for ours, other in rounds)
            rates = [statistics.median(told[arm].rate for told in rounds) for arm in (0, 1)]
            medians = [statistics.median(told[arm].milliseconds(50) for told in rounds) for arm in (0, 1)]
            print(
                f"{callers:7d} {rates[0]:10.2f} {rates[1]:14.2f} {ratio:16.2f} {medians[0]:14.1f} {medians[1]:18.1f}",
                flush=True,
            )
            met &= ratio >= 1
    return met


def start(work: dict[str, Work], url: str) -> bool:
    """Satellite embedding stands at zero; the first request has to wait for a replica."""
    while httpx.get(url + "/readyz", trust_env=False).json()["deployments"]["satellite"]:
        time.sleep(0.5)
    question = work["embed/satellite"].question
    begin = time.perf_counter()
    httpx.post(url + question.path, content=question.bodies[0], headers=JPEG, timeout=120, trust_env=False)
    print(f"from no replica to the first answer: {time.perf_counter() - begin:.1f} s")
    figures = httpx.get(url + "/metrics", trust_env=False).text.splitlines()
    for line in figures:
        if line.startswith(("s2s_replica_start_seconds", "ray_s2s_replica_start_seconds")):
            print(line)
    return True


def main() -> int:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "overhead", "litserve", "start"])
    parser.add_argument("--preset", help="default: paper; for overhead and start tiny")
    parser.add_argument("--proxy", choices=["haproxy", "python"], default="haproxy")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="PyTorch's, of a replica and of the model")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=8.0, help="of one arm of one round")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    preset = options.preset or ("tiny" if options.what in ("overhead", "start") else "paper")
    torch.set_num_threads(options.threads)
    sizes = ["source.panorama_height=224", "source.panorama_width=1232", "source.tile_px=750"]
    source = open_source(load_config("tiny", [f"source.train_pairs={IMAGES}", *sizes]).source)
    pairs = [source.read(record) for record in source.records()[:IMAGES]]
    panoramas, tiles = ([encode(pair[side], "jpeg") for pair in pairs] for side in (1, 0))
    with tempfile.TemporaryDirectory(prefix="s2s-serve-") as name:
        folder = Path(name)
        release = Release.made(preset, folder)
        work = works(release, panoramas, tiles)
        changes: dict[str, Any] = {}
        if options.what == "start":
            changes = {"satellite": {"num_cpus": 0.1, "min_replicas": 0, "max_replicas": 1, "downscale_delay_s": 2}}
        print(f"`{preset}` on {options.threads} threads, batches of {options.batch}, {options.proxy} proxy", flush=True)
        with service(folder, release, options, **changes) as url:
            if options.what == "throughput":
                met = throughput(work, url, options)
            elif options.what == "overhead":
                met = overhead(work, url, options)
            elif options.what == "litserve":
                met = litserve(release, panoramas, url, options)
            else:
                met = start(work, url)
    if options.what != "start":
        print("the goal is met" if met else "THE GOAL IS MISSED")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())

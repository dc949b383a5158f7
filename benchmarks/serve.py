"""The cost of the service: real HTTP against the bare model on the same cores, in one run.

    python benchmarks/serve.py throughput          every endpoint with the `paper` model: at least 0.9 of the bare rate
    python benchmarks/serve.py overhead            latency that HTTP adds to the median, `tiny` model, one caller
    python benchmarks/serve.py litserve            LitServe serving the same model (the dependency group `bench`)
    python benchmarks/serve.py start               from no replica to the first response

Images are JPEGs of a procedural city in CVUSA's sizes: panoramas 224 x 1232, tiles 750 x 750. The model has random
weights. `python -m serve` runs as it would for a user, behind Ray's HAProxy unless `--proxy python` is given, with one
PyTorch thread per replica and one replica of the measured deployment per core (one of each for `overhead`). "Bare" is
the function that a replica calls, in as many processes with as many threads and images per batch, on prepared views;
localisation adds the search. The service is up while the bare model is measured; its use of the cores at rest is
printed. LitServe and the service are never up together. Arms alternate, and a ratio is the median over the rounds;
percentiles are those of the last round.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
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

import httpx2
import numpy as np
import pyarrow as pa
import torch
import yaml
from http_load import Load, RequestKind, closed, opened

from s2s_ray import storage
from s2s_ray.config import load_config
from s2s_ray.data.sources import open_source
from s2s_ray.geo.images import decode, encode
from s2s_ray.index import IndexInfo, ReferenceIndex
from s2s_ray.inference import Embedder, Synthesizer
from s2s_ray.model.checkpoint import save_model
from s2s_ray.model.s2s import S2S
from s2s_ray.registry import fingerprint
from s2s_ray.runtime.memory import keep_memory

ROOT = Path(__file__).resolve().parents[1]
TILES, IMAGES = 1000, 8
GOAL, ADDED_MS = 0.9, {"embed/street": 5.0, "embed/satellite": 5.0, "localize?k=5": 12.0}
JPEG = {"content-type": "image/jpeg"}


class Work(NamedTuple):
    """An endpoint, and the work that it does."""

    request: RequestKind
    deployment: str
    views: torch.Tensor
    bare: Callable[[torch.Tensor], Any]
    whole: Callable[[bytes], Any]
    """The whole work from the JPEG to the result, in this process."""


class Images(NamedTuple):
    """JPEG files."""

    panoramas: list[bytes]
    tiles: list[bytes]


class Release(NamedTuple):
    """A model with random weights, and a matching index of random descriptors."""

    checkpoint: str
    index: str

    @classmethod
    def create(cls, preset: str, folder: Path) -> Release:
        torch.manual_seed(0)
        model = S2S(load_config(preset, ["model.street_weights=random"]).model).eval()
        meta = {"run": "benchmark", "step": 0, "epoch": 0, "metrics": {}}
        save_model(model, meta, folder / "local")
        release = cls(str(folder / "checkpoint"), str(folder / "index"))
        storage.publish(folder / "local", release.checkpoint)
        size = model.config.descriptor_size
        info = IndexInfo(
            dimension=size,
            count=TILES,
            checkpoint=fingerprint(release.checkpoint),
            dataset="random",
            dataset_digest="-",
            split="test",
        )
        columns: dict[str, Any] = {"id": [f"tile-{row}" for row in range(TILES)]}
        columns |= {name: np.linspace(50, 51, TILES) for name in ("latitude", "longitude", "easting", "northing")}
        table = pa.table({**columns, "zone": pa.array([32632] * TILES, pa.int32())})
        descriptors = np.random.default_rng(0).normal(size=(TILES, size)).astype(np.float32)
        descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
        ReferenceIndex.build(info, descriptors, table).save(release.index)
        return release


def works(release: Release, images: Images) -> dict[str, Work]:
    """Return the endpoints by name, each with its work without HTTP."""
    panoramas, tiles = images
    embedder, satellite = Embedder.load(release.checkpoint), Embedder.load(release.checkpoint)
    synthesizer = Synthesizer.load(release.checkpoint)
    embedder.specialise("street")
    satellite.specialise("satellite")
    synthesizer.specialise("synthesis")
    index = ReferenceIndex.load(release.index)
    geometry = embedder.geometry
    street = torch.stack([geometry.street(decode(body), 0.0, None) for body in panoramas])
    polar = torch.stack([geometry.satellite(decode(body), "auto") for body in tiles])
    npy = {**JPEG, "accept": "application/x-npy"}

    def located(views: torch.Tensor) -> Any:
        return [index.search(descriptor[None], 5) for descriptor in embedder.embed_street(views)]

    return {
        "embed/street": Work(
            RequestKind("/v1/embed/street?heading=0", panoramas, npy),
            "street",
            street,
            embedder.embed_street,
            lambda body: embedder.street([decode(body)]),
        ),
        "embed/satellite": Work(
            RequestKind("/v1/embed/satellite", tiles, npy),
            "satellite",
            polar,
            satellite.embed_satellite,
            lambda body: satellite.satellite([decode(body)]),
        ),
        "synthesize": Work(
            RequestKind("/v1/synthesize", tiles, {**JPEG, "accept": "image/jpeg"}),
            "synthesis",
            polar,
            synthesizer.synthesize,
            lambda body: encode(synthesizer.street([decode(body)])[0], "jpeg"),
        ),
        "localize?k=5": Work(
            RequestKind("/v1/localize?k=5&heading=0", panoramas, JPEG),
            "street",
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
    """Run a server for the duration of the block; it is up once `path` responds with 200."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    running = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 600  # compiling takes minutes
        while True:
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(url + path, trust_env=False, timeout=5).status_code == 200:
                    break
            if running.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{' '.join(command)} did not come up")
            time.sleep(0.5)
        yield running
    finally:
        running.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)  # processes that it left behind


@contextlib.contextmanager
def service(
    folder: Path, release: Release, options: argparse.Namespace, many: str | None = None, **changes: Any
) -> Iterator[str]:
    """Run `python -m serve` with several replicas of the deployment `many`; yield its URL."""
    single = {"num_cpus": 0.05, "max_replicas": 1}
    tree: dict[str, Any] = {**release._asdict(), "threads": 1, "access_log": False, "search": single, "ingress": single}
    for name in ("street", "satellite", "synthesis"):
        count = options.replicas if name == many else 1
        tree[name] = {**single, "min_replicas": count, "max_replicas": count, "max_batch": options.batch}
        tree[name] |= {"compile": options.compile and name == many, **changes.get(name, {})}
    settings = folder / "settings.yaml"
    settings.write_text(yaml.safe_dump(tree), encoding="utf-8")
    port = free_port()
    command = [sys.executable, "-m", "serve", "--settings", str(settings), "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with process(command + ["--haproxy"] * (options.proxy == "haproxy"), url, "/readyz"):
        time.sleep(5)  # until the processes around it have started, too
        yield url


def idle_share(seconds: float = 5) -> float:
    """Return the share of one core that this machine uses without requests."""

    def busy() -> float:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        return (sum(fields[:3]) + sum(fields[5:8])) / os.sysconf("SC_CLK_TCK")

    before = busy()
    time.sleep(seconds)
    return (busy() - before) / seconds


class Bare:
    """Processes that run the bare model, one thread each."""

    def __init__(self, release: Release, images: Images, options: argparse.Namespace) -> None:
        self._options = options
        # forked: the models are shared, and no OpenMP thread has been started yet
        self._pool = multiprocessing.get_context("fork").Pool(options.replicas, _load, (release, images))

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *_error: object) -> None:
        self._pool.terminate()

    def rate(self, name: str) -> float:
        """Return the images per second of all processes together."""
        options = self._options
        begin = time.perf_counter()
        done = self._pool.starmap(_batches, [(name, options.batch, begin, options.seconds)] * options.replicas, 1)
        return sum(done) / (time.perf_counter() - begin)


_loaded: dict[str, Work] = {}


def _load(release: Release, images: Images) -> None:
    torch.set_num_threads(1)
    keep_memory()  # as a replica does
    _loaded.update(works(release, images))


def _batches(name: str, batch: int, begin: float, seconds: float) -> int:
    """Run batches until the time is over, and return the number of images."""
    work, count = _loaded[name], 0
    views = work.views.repeat(-(-batch // len(work.views)), 1, 1, 1)[:batch]
    while time.perf_counter() < begin + seconds:
        work.bare(views)
        count += batch
    return count


def throughput(folder: Path, release: Release, images: Images, options: argparse.Namespace) -> bool:
    """Measure every endpoint with callers for four batches per replica, then at four fifths of that rate."""
    callers, met = 4 * options.batch * options.replicas, True
    print(
        "endpoint          at rest, cores   bare, /s   HTTP, /s   share (goal 0.9)"
        "     p50    p95 ms   at 0.8: p50    p95 ms"
    )
    with Bare(release, images, options) as bare:
        for name, one in works(release, images).items():
            if options.endpoints and name not in options.endpoints:
                continue
            with service(folder, release, options, one.deployment) as url:
                idle = idle_share()
                closed(url, one.request, callers, options.seconds)
                rounds = [
                    (bare.rate(name), closed(url, one.request, callers, options.seconds))
                    for _ in range(options.repetitions)
                ]
                rate = statistics.median(load.rate for _, load in rounds)
                steady = opened(url, one.request, 0.8 * rate, options.seconds)
            share = statistics.median(load.rate / alone for alone, load in rounds)
            alone, last = statistics.median(alone for alone, _ in rounds), rounds[-1][1]
            times = [load.milliseconds(percentile) for load in (last, steady) for percentile in (50, 95)]
            rejected = sum(load.rejected for load in (*(load for _, load in rounds), steady))
            print(
                f"{name:16s} {idle:15.2f} {alone:10.2f} {rate:10.2f} {share:18.2f} {times[0]:7.0f} {times[1]:9.0f} "
                f"{times[2]:13.0f} {times[3]:9.0f}" + f"   {rejected} rejected" * (rejected > 0),
                flush=True,
            )
            met &= share >= GOAL
    return met


def overhead(work: dict[str, Work], url: str, options: argparse.Namespace) -> bool:
    """Measure one caller: the median over HTTP minus that of the same work in this process."""
    print(f"at rest the service uses {idle_share():.2f} of a core")
    print("endpoint          in process, ms   HTTP, ms   added, ms   goal")
    met = True
    for name, one in work.items():
        closed(url, one.request, 1, 2)
        rounds = []
        for _ in range(options.repetitions):
            alone = []
            for turn in range(round(options.seconds * 20)):
                body = one.request.bodies[turn % IMAGES]
                begin = time.perf_counter()
                one.whole(body)
                alone.append(time.perf_counter() - begin)
            rounds.append(
                (statistics.median(alone) * 1e3, closed(url, one.request, 1, options.seconds).milliseconds(50))
            )
        alone, over = (statistics.median(values) for values in zip(*rounds, strict=True))
        added, goal = statistics.median(http - alone for alone, http in rounds), ADDED_MS.get(name)
        print(f"{name:16s} {alone:15.1f} {over:10.1f} {added:11.1f}   {goal or '-'}", flush=True)
        met &= goal is None or added <= goal
    return met


def litserve(folder: Path, release: Release, panoramas: list[bytes], options: argparse.Namespace) -> bool:
    """Compare street embedding as JSON from multipart forms, with as many replicas each.

    Each server is alone on the machine while it is measured, and restarted every round: at rest LitServe's processes
    poll for about three tenths of a core. Our satellite and synthesis deployments are scaled to zero.
    """
    boundary = "x" * 24
    disposition = 'Content-Disposition: form-data; name="image"; filename="a.jpg"'
    head = f"--{boundary}\r\n{disposition}\r\nContent-Type: image/jpeg\r\n\r\n".encode()
    bodies = [head + body + f"\r\n--{boundary}--\r\n".encode() for body in panoramas]
    form = {"content-type": f"multipart/form-data; boundary={boundary}"}
    program = str(ROOT / "benchmarks" / "serve_litserve.py")
    counts = (1, 4 * options.batch * options.replicas)
    idle = {"min_replicas": 0}  # LitServe has the street model alone

    def measured(url: str, path: str) -> list[Load]:
        kind = RequestKind(path, bodies, form)
        closed(url, kind, counts[-1], options.seconds)  # warm-up
        return [closed(url, kind, callers, options.seconds) for callers in counts]

    def ours() -> list[Load]:
        with service(folder, release, options, "street", satellite=idle, synthesis=idle) as url:
            return measured(url, "/v1/embed/street?heading=0")

    def theirs() -> list[Load]:
        port = free_port()
        command = [sys.executable, program, release.checkpoint, str(port), str(options.batch), str(options.replicas)]
        with process(command, f"http://127.0.0.1:{port}", "/health"):
            return measured(f"http://127.0.0.1:{port}", "/predict")

    rounds = []
    for turn in range(options.repetitions):
        loads = {arm: arm() for arm in ((ours, theirs) if turn % 2 else (theirs, ours))}
        rounds.append((loads[ours], loads[theirs]))
    print("callers   ours, /s   LitServe, /s   ratio (goal 1)   ours p50, ms   LitServe p50, ms")
    met = True
    for level, callers in enumerate(counts):
        pairs = [(our[level], their[level]) for our, their in rounds]
        ratio = statistics.median(our.rate / their.rate for our, their in pairs)
        rates = [statistics.median(load.rate for load in arm) for arm in zip(*pairs, strict=True)]
        medians = [statistics.median(load.milliseconds(50) for load in arm) for arm in zip(*pairs, strict=True)]
        print(f"{callers:7d} {rates[0]:10.2f} {rates[1]:14.2f} {ratio:16.2f} {medians[0]:14.1f} {medians[1]:18.1f}")
        met &= ratio >= 1
    return met


def start(kind: RequestKind, url: str) -> None:
    """Time the first request to satellite embedding, which is scaled to zero."""
    while httpx2.get(url + "/readyz", trust_env=False).json()["deployments"]["satellite"]:
        time.sleep(0.5)
    begin = time.perf_counter()
    httpx2.post(url + kind.path, content=kind.bodies[0], headers=JPEG, timeout=120, trust_env=False)
    print(f"from no replica to the first response: {time.perf_counter() - begin:.1f} s")


def main() -> int:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "overhead", "litserve", "start"])
    parser.add_argument("--preset", help="default: paper; for overhead and start tiny")
    parser.add_argument("--proxy", choices=["haproxy", "python"], default="haproxy")
    parser.add_argument("--replicas", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument(
        "--compile", action="store_true", help="compile the models of the measured replicas, but not the bare ones"
    )
    parser.add_argument(
        "--endpoints", nargs="+", help="endpoints of `throughput`; default: all, about four minutes each"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of one arm of one round")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    preset = options.preset or ("tiny" if options.what in ("overhead", "start") else "paper")
    torch.set_num_threads(1)
    sizes = ["source.panorama_height=224", "source.panorama_width=1232", "source.tile_px=750"]
    source = open_source(load_config("tiny", [f"source.train_pairs={IMAGES}", *sizes]).source)
    pairs = [source.read(record) for record in source.records()[:IMAGES]]
    images = Images([encode(one.street, "jpeg") for one in pairs], [encode(one.satellite, "jpeg") for one in pairs])
    with tempfile.TemporaryDirectory(prefix="s2s-serve-") as name:
        folder = Path(name)
        release = Release.create(preset, folder)
        count = 1 if options.what in ("overhead", "start") else options.replicas
        print(f"`{preset}`, {count} replicas, batches of {options.batch}, {options.proxy} proxy", flush=True)
        if options.what == "throughput":
            met = throughput(folder, release, images, options)
        elif options.what == "overhead":
            with service(folder, release, options) as url:
                met = overhead(works(release, images), url, options)
        elif options.what == "litserve":
            met = litserve(folder, release, images.panoramas, options)
        else:
            with service(folder, release, options, satellite={"min_replicas": 0, "downscale_delay_s": 2}) as url:
                start(works(release, images)["embed/satellite"].request, url)
            return 0
    print("the goal is met" if met else "THE GOAL IS MISSED")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())

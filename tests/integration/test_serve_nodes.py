"""The service on a cluster of several simulated nodes, one of which is lost under load."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from s2s_ray import registry
from s2s_ray.inference import Localizer
from tests.support.callers import load, patient, raw, summary, until
from tests.support.clusters import deployed, local_cluster, wait_for
from tests.support.processes import commands_of, kill, processes_of
from tests.support.served import Running, publish

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
DEPLOYMENTS = ("Ingress", "StreetEmbedding", "Search")


def replicas_on(node: subprocess.Popen[bytes]) -> Counter[str]:
    """Return the number of replicas of each deployment on a node."""
    replicas = (re.match(r"ray::ServeReplica:s2s:(\w+)", command) for command in commands_of(node.pid))
    return Counter(replica[1] for replica in replicas if replica)


def test_a_lost_node_fails_no_request_of_clients_that_retry(tmp_path: Path) -> None:
    """The node that is killed has one replica of each deployment; they are replaced on the other node."""
    root = str(tmp_path / "registry")
    release = publish(tmp_path, 5, root)
    registry.promote(root, "demo", release.id)
    with local_cluster() as cluster:
        cluster.start_head()
        for _ in range(2):
            cluster.add_node(2)
        two = {"num_cpus": 0.1, "min_replicas": 2, "max_replicas": 2}
        none = {"num_cpus": 0.1, "min_replicas": 0, "max_replicas": 1}
        changes = {"street": two, "search": two, "ingress": two, "satellite": none, "synthesis": none}
        url = deployed(cluster, tmp_path, registry=root, name="demo", access_log=False, **changes)
        staying, leaving = cluster.nodes[1:]

        def spread() -> bool:
            return all(replicas_on(node)[name] == 1 for node in (staying, leaving) for name in DEPLOYMENTS)

        wait_for("replica of each deployment on each node", spread)
        assert release.index_uri is not None
        localizer = Localizer.load(release.checkpoint_uri, release.index_uri)
        with httpx2.Client(base_url=url, timeout=60, trust_env=False) as http:
            running = Running(http, url, root, release, localizer, leaving)
            with load(raw(running)) as unretried, load(patient(running)) as outcomes:
                until(lambda: len(outcomes) > 20 and len(unretried) > 20, 60, "no load")
                kill(processes_of(leaving.pid))
                replaced = until(
                    lambda: all(replicas_on(staying)[name] == 2 for name in DEPLOYMENTS), 180, "no new replicas"
                )
                before = len(outcomes)
                until(lambda: len(outcomes) > before + 40, 90, "no responses any more")
        print(f"\nnode lost: without retries {summary(unretried)}; through the client {summary(outcomes)}")
        print(f"its replicas were replaced after {replaced:.0f} s")
        assert {outcome.status for outcome in outcomes} == {200}
        assert Counter(outcome.status for outcome in unretried)[200] > 0.9 * len(unretried), summary(unretried)

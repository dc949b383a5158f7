"""Texts of several nodes as one."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from s2s_ray.service.http.metrics import merge

NODE = """# HELP ray_s2s_requests_total Answered requests.
# TYPE ray_s2s_requests_total counter
ray_s2s_requests_total{{status="200",node="{node}"}} {count}
# HELP ray_node_mem Memory.
# TYPE ray_node_mem gauge
ray_node_mem{{node="{node}"}} 1.0
# HELP ray_s2s_{own} Of one node only.
# TYPE ray_s2s_{own} gauge
ray_s2s_{own} 3.0
"""


def test_families_stand_once_with_the_samples_of_all_nodes() -> None:
    text = merge([NODE.format(node="a", count=2.0, own="x"), NODE.format(node="b", count=5.0, own="y")])
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert set(families) == {"ray_s2s_requests", "ray_s2s_x", "ray_s2s_y"}
    assert sum(sample.value for sample in families["ray_s2s_requests"].samples) == 7
    assert text.count("# TYPE ray_s2s_requests_total") == 1
    assert merge([]) == ""

"""Monitoring: the state of storage roots and of deployments, for a terminal and for Prometheus."""

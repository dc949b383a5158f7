"""The deployments that hold a model or an index."""

"""The ground floor: the Ray cluster, collectives, progress, memory and metrics. It imports nothing but errors."""

"""`python -m s2s_ray.cli`."""

from s2s_ray.cli import main

main()

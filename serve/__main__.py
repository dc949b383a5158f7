"""Run `s2s serve` as `python -m serve --registry URI --name NAME`."""

from __future__ import annotations

import sys

from s2s_ray.cli import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])

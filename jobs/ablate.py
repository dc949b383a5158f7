"""`s2s ablate` as an entry script: `ray job submit --working-dir . -- python jobs/ablate.py --config ...`."""

from __future__ import annotations

import sys

from s2s_ray.cli import main

if __name__ == "__main__":
    main(["ablate", *sys.argv[1:]])

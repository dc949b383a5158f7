"""`s2s tune` as an entry script: `ray job submit --working-dir . -- python jobs/tune.py --config ...`."""

from __future__ import annotations

import sys

from s2s_ray.cli import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])

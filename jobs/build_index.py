"""`s2s build-index` as an entry script: `ray job submit --working-dir . -- python jobs/build_index.py --config ...`."""

from __future__ import annotations

import sys

from s2s_ray.cli import main

if __name__ == "__main__":
    main(["build-index", *sys.argv[1:]])

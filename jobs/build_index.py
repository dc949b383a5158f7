"""`s2s build-index --parallel` as a script: `ray job submit --working-dir . -- python jobs/build_index.py ...`."""

from __future__ import annotations

import sys

from s2s_ray.cli import main

if __name__ == "__main__":
    main(["build-index", "--parallel", *sys.argv[1:]])

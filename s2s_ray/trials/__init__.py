"""The common parts of sweeps and ablation studies: trials, their placement, and the claim on a study."""

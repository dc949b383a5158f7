"""What sweeps and ablation studies share: trials, their placement, and the claim on a study."""

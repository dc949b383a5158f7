"""What a person on call looks at: gauges of training and sweeps, the state of a storage root, its exporter."""

"""Entry scripts for `ray job submit`; each is one verb of `s2s`."""

"""Which cached keys and values go first: one file per policy."""

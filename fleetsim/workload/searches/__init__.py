"""Which leaves of a search tree go on: one file a policy."""

"""How many replicas are wanted: one file a policy."""

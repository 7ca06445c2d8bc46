"""Who moves to which other replica: one file a policy."""

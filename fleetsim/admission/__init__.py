"""Who is let in: one file a policy."""

"""Which LLM a replica holds, and which request runs there next: one file a policy."""

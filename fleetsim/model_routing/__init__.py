"""Which LLM answers, with which reasoning budget, and whether another one is asked too."""

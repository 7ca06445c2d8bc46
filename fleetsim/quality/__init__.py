"""How good answers are: the hidden truth about requests, and what can be seen of it."""

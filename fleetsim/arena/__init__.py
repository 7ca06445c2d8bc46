"""Policies against each other: a fixed suite of scenarios, common random numbers, one ranked table."""

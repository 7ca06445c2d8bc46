"""Runs as other tools write them, one module for each."""

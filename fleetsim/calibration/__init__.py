"""Fits the few constants of the physics to measurements: published kernel tables, or results of one's own server."""

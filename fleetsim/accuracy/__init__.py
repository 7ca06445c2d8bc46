"""Compares the physics with published measurements and writes what it finds."""

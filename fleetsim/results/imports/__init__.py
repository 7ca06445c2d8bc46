"""Runs that other tools measured, as result folders, one module for each."""

"""Precision plugins, one per file."""

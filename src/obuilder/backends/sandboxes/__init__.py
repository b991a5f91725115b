"""Sandboxes: they run commands and move files in and out of a root."""

"""Fetchers: they turn an image's name into layers of files."""

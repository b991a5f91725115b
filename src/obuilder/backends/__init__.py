"""Stores, sandboxes and fetchers behind three protocols."""

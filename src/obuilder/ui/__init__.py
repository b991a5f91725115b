"""Screens: sinks of the one stream of events."""

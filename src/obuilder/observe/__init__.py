"""What others watch builds with: sinks of events for the tools of operators."""

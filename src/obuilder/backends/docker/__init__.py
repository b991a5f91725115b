"""A container engine, Docker's or one that understands its API: what store and sandbox share."""

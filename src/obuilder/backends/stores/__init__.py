"""Stores: they make, keep and drop snapshots, and nothing else."""

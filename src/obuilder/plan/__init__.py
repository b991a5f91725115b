"""Spec and Inputs to Plan, pure: every key is known before anything runs."""

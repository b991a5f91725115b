"""Shipped for authors of back ends: conformance suites, fakes, capability probes."""

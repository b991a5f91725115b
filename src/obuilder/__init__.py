"""obuilder: one build spec, run step by step in a sandbox, every step snapshotted and shared.

The public API is what this package, `obuilder.backends.protocols` and `obuilder.testing` name.
Names are loaded on first use, so that a fully cached build imports nothing it does not need.
"""

__version__ = "0.1.0"

"""Text to Spec, pure: no file is opened here and nothing waits."""

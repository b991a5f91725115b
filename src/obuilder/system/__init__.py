"""The operating system: processes, files, mounts, namespaces. No policy."""

"""What a root file system holds: the packages that its databases know, and their SBOM."""

"""The Open Container Initiative's formats: images, layers, runtime bundles."""

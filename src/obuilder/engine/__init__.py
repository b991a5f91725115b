"""Plan to Result: what every back end shares is written here once."""

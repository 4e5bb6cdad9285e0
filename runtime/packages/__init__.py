"""The package on disk: manifest, checks, reading."""

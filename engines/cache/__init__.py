"""Built engines on disk: sidecar files, staleness, locks, optimization profiles."""

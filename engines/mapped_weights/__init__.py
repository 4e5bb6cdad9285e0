"""Weight files that a library maps into memory; docs/memory-mapped-weights.md says why."""

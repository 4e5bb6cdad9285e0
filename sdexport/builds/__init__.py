"""Engines built for a package, and whether each still fits."""

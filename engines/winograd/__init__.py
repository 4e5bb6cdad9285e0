"""Winograd convolution transforms; docs/winograd.md says why."""

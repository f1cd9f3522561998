"""Tracking: what a run leaves on disk and shows on the terminal."""

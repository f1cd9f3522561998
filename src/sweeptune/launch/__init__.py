"""Launching: the entry point, one isolated process per run of a sweep, torchrun where a run has several ranks."""

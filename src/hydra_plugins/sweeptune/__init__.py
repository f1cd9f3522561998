"""Hydra plugins: each only hands over to sweeptune."""

"""Measurements of what the project promises; ``python -m benchmarks`` runs them all."""

"""Weights: torch's state dicts to variables and back."""

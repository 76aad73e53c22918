"""Lowerings for XLA's CPU backend."""

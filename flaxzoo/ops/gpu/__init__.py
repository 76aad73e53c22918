"""Lowerings for NVIDIA GPUs."""

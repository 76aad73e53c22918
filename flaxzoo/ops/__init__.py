"""Functions on arrays in torch's arithmetic, each with the lowerings that a platform computes fastest."""

"""One file a family: its blocks, its network and `VARIANTS`, the table of its registered names."""

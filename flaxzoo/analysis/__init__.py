"""Looking into networks: where a port and its reference part, and what a network costs."""

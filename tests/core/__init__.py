"""The tree and what publishes it, without a kernel."""

"""Real servers that the tests start, and what they need."""

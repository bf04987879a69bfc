"""The same work on fusefs, on its peers over one S3 server, and at the limits; `scripts/bench` runs it."""

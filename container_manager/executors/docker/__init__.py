"""Docker Engine: docker-py carries the requests, everything above it is ours."""

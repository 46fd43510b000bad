"""Development tools: private engines, a base image, databases. Standard library only."""

"""What runs containers: the seam, the drivers, and the facade."""

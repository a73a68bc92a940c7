"""File formats: splats, cameras, posed images, and videos."""

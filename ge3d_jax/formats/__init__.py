"""File formats: splats, cameras, posed images, videos."""

"""What files look like: splats, cameras, posed pictures, videos."""

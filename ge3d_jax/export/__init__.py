"""Files a person can look at: .ply, pictures, videos."""

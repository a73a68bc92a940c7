"""What everything uses and what uses nothing: errors, files, settings, devices, random numbers."""

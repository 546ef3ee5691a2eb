"""What watches or steers a run without changing its method."""

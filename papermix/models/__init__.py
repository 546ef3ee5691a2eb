"""Networks and layers: no losses, no data."""

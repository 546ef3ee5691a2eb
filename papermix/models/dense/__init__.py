"""Networks that give maps instead of one vector: semantic, panoptic and instance segmentation, depth."""

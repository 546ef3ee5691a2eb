"""Segments of images: semantic, instance and panoptic segmentation without any network."""

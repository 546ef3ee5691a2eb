"""Data with a truth for every pixel: drawn scenes, COCO, VOC, Cityscapes."""

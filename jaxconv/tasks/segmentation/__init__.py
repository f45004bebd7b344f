"""Segmentation: a class for each pixel of an image, or each voxel of a volume."""

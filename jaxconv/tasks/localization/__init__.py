"""Localization: one class and one box for each image."""

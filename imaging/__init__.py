"""Pixels and nothing else: luminance, resizing, quality measures, public images."""

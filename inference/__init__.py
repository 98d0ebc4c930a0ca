"""Weights in, pictures and figures out."""

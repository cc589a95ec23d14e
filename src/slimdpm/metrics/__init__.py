"""Figures that judge a network or its samples."""

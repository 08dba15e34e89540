"""Sampling: moments and distances of laws that are known exactly."""

"""Figures: one per paper, its panels the claims; and the overview of all claims."""

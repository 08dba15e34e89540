"""What things cost: printed, not asserted (make benchmark)."""

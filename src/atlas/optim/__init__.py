"""Optimizers: update rules that several papers share, schedules, and fair choices of step sizes."""

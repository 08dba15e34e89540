"""Federated learning: clients as a batch dimension, which of them take part, and their problems."""

"""Small networks, many at a time: every replica (seed, step size, client) is one row of parameters."""

"""Advantages, losses and the objective: pure functions on packed token tensors, torch only."""

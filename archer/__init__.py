"""archer: reinforcement learning from verifiable rewards, in one process or on a cluster."""

__version__ = "0.1.0"

"""Onto the network: a publisher of its own protocol, over ZeroMQ, for whoever subscribes."""

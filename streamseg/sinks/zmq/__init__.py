"""ZeroMQ sink: the publisher of results, images and status messages."""

"""Sinks of results: ZeroMQ, MQTT, files and plug-ins."""

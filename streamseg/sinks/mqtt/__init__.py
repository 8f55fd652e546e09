"""Counts and events for home automation, to an MQTT broker."""

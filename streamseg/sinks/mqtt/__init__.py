"""MQTT sink: object counts, events and source states for home automation."""

"""Where results go: onto the network, to an MQTT broker, and into files."""

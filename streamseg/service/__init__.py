"""Live composition: wiring, sources at run time, life cycle, HTTP API and systemd."""

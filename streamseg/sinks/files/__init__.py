"""File sinks: results as JSON lines, annotated video, panoptic PNGs."""

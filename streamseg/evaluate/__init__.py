"""How good results are: average precision, panoptic quality, tracking; numbers and pictures."""

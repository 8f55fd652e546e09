"""What families of models share: trunks, and masks that are made inside their boxes."""

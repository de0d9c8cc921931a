"""Where pretrained parts come from."""

"""From a field and cameras to images."""

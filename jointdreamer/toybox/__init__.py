"""The toybox: a small procedural world, the models trained on it, and the instruments that judge them."""

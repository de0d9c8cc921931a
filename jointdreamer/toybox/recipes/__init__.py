"""What each toybox model is trained on, by what loss, and how it ships: one file a model."""

"""What teaches a scene: one term per file."""

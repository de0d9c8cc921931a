"""What is optimised, and how cameras see it."""

"""A window in the browser on runs' objects: while they train (viewer=true), and afterwards (jointdreamer.view)."""

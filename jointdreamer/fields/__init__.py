"""Radiance fields: what is where, and of which colour."""

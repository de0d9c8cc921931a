"""From run folders to numbers: finding runs, measuring them once, statistics over them, tables."""

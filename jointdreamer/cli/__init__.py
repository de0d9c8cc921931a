"""The command line: composing the config, words as typed, sweeps."""

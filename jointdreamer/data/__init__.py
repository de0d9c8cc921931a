"""Pictures that networks of ours are trained on."""

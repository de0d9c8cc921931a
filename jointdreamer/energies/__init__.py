"""Energies: how well the views of one object agree (C of Eq. 3). Larger is more coherent."""

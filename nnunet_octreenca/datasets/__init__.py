"""Data sets in nnU-Net's layout."""

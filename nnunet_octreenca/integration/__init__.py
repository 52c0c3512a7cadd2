"""The only package that touches nnU-Net's internals (written against 2.8.1)."""

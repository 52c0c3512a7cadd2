"""All that leans on nnU-Net's internals, and nothing else does (read against 2.8.1)."""

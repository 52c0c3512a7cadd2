"""The program `nnunet_octreenca`."""

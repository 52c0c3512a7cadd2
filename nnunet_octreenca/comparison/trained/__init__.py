"""Methods that are trained, measured and compared on a data set of nnU-Net's, one after another."""

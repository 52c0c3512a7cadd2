"""nnU-Net's preprocessing, band by band: crop, normalise, resample, and the way back."""

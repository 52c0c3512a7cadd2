"""nnU-Net's preprocessing, band by band: crop, normalize, resample, and the way back."""

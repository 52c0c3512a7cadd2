"""nnU-Net's preprocessing band by band: crop, normalize, resample, and the inverse for labels."""

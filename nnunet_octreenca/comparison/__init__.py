"""Finished segmentations compared with a truth: metrics, statistics, and one report."""

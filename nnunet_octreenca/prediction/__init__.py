"""Prediction of a case or a folder, from file to file."""

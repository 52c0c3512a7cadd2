"""Images from files, in bands, and label maps back to files."""

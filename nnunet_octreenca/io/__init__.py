"""The former place of `images` and `labels`, kept for code that imports `open_image` from here."""

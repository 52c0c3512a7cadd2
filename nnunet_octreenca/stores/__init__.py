"""Images read from, and results written to, stores that are reached by URL (S3, HTTPS, ...)."""

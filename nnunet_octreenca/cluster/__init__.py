"""An archive of cases on many machines, scheduled by dask.distributed: one task a case."""

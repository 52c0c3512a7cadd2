"""What a result is and how it is written: label maps as TIFF, Zarr, GeoJSON, DICOM, PNG, ..."""

"""What an imaging practice keeps: DICOM files and whose they are. Knows neither chunks nor FUSE."""

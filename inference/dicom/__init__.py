"""DICOM in and out: series of slices as scans, masks as DICOM-SEG. Needs the extra `dicom`."""

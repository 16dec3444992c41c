"""Files: metrics, labels, provenance, and the way to the disk and back."""

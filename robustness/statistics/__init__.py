"""Statistics: uncertainty, paired differences, segmentation, and when to stop."""

"""Claims judged, and models side by side."""

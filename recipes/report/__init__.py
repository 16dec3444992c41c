"""The report: one page from files alone."""

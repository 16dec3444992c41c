"""Files as tables and figures."""

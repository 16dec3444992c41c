"""Text: local files and data sets, and the token sequences cut from them."""

"""The experiments of the paper, their figures, and how the built-in models were made."""

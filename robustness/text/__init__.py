"""Text: sources of documents, and token sequences cut from them.

Call `read_text` or `cut` of `robustness.text.corpus`, with `robustness.text.settings.TextSettings`.
They are not imported here, since settings must load without the libraries that read data sets.
"""

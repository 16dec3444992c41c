"""The experiments of the paper, their figures, and how the built-in models were made."""

import logging

# Where it may keep nothing, it draws all the same, only later: nothing that a user can act on.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

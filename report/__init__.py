"""The page that shows what weights do: figures, curves, before and after."""

import logging

# That it keeps its list of fonts elsewhere, where the home cannot be written, or makes it anew.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

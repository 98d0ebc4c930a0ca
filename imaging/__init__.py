"""Pixels and nothing else: luminance, resizing, quality measures, public images."""

import warnings

warnings.filterwarnings("ignore", module=r"PIL\.")  # errors and notes say what there is to say

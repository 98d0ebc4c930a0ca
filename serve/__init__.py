"""The page on which a picture is enlarged and compared, for this computer alone."""

"""The page that shows what weights do: figures, curves, before and after."""

"""From images to the HDF5 files that training reads."""

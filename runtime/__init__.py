"""The machine: devices, precision, distribution, checkpoints, what is printed and recorded."""

"""The machine: devices, mixed precision, distribution, checkpoints, what is printed and recorded."""

"""What both simulated NPUs share: kernels on the host, HCCL over gloo, the record of what ran."""

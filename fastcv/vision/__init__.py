"""Classical vision on the distance kernels."""

"""Portable kernels in Triton, for every NVIDIA and AMD device without a compiled library.

Importing this package imports no Triton; `mainboard.kernels.gpu_dispatch` imports the operators at
the first call that they serve.
"""

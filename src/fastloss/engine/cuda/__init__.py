"""Kernels on a CUDA device, from the definitions that serve the CPU. Nothing here is imported before it is needed.

`drivers` has all the loops, `arrays` what a device array is and whose, `launch` the way from a variant to its launches.
"""

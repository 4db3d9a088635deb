"""Attention over pairs in compressed sparse rows, as Triton kernels for CUDA: `plain`, but faster.

Tokens are rows of all heads, (N, H · D), and a program takes all heads of a row, so a pair costs
one row of keys and one of values. Each of `BLOCK` lanes goes through every `BLOCK`-th pair of the
row with an online softmax of its own (Milakov and Gimelshein, 2018), and lanes are merged at the
end by log-sum-exp. So are segments of the pairs of a hub, which programs of their own go through.
Forward keeps the log-sum-exp; backward is a pass over queries and one over keys, each of which
computes weights anew, so no sum needs an atomic and no number of a pair is kept.

`launch` has the functions that `operator` calls; this package is imported when a GPU has work for
it, as triton is on Linux with CUDA only, and takes long to import.
"""

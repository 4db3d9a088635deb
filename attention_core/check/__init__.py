"""`attn check`: what a user's own machine computes, how long it takes, and what costs it has.

``cases``         a compact set of spaces, masks, biases and options
``conformance``   each backend on the device beside `reference` in float64 on the CPU
``waits``         how often a layer waits for a GPU
``works``         what is timed; ``times``: ours beside what else there is, and factors from that
``report``        what was found, written after each section, as a table and as JSON
``run``           the sections, in turn, each with a deadline
"""

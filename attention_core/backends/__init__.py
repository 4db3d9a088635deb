"""The ways of computing attention. Each is a module with the same five functions:

``lacks(job)``      what it cannot do of a job, in words, or None
``cost(job)``       estimated time; the unit is one pair of unmasked SDPA, and the constants were
                    measured (forward and backward, heads of 64, float32, one CPU core)
``prepare(job)``    what the layers and heads of a forward pass share
``run(plan, ...)``  the attention itself
``describe(...)``   what it does, in a sentence
"""

"""The ways of computing attention. Each is a module with the same five functions:

``unsupported(job)``  what it cannot do of a job, in words, or None
``cost(job)``         estimated nanoseconds, see `costs`
``prepare(job)``      what the layers and heads of a forward pass share
``run(plan, ...)``    the attention itself
``describe(...)``     what it does, in a sentence
"""

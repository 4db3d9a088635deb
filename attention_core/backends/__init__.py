"""The ways of computing attention. Each is a module with the same five functions:

``unsupported(job)``  what it cannot do of a job, in words, or None
``cost(job)``         estimated nanoseconds, see `costs`
``prepare(job)``      what the layers and heads of a forward pass share
``run(plan, ...)``    the attention itself
``describe(...)``     what it does, in a sentence

What `prepare` gives is kept for later calls (`plan_cache`), and its ``for_job(job)`` gives it to
another job of the same structure: apart from the job, nothing in it may depend on values of biases,
edge features or data per token, nor share memory with tensors of the caller.
"""

"""`verify`: the laws, run on a user's model, machine and settings (architecture.md).

Each check holds what the engine gives against another way to it: the request alone, a reference in
numpy, the sampler's definition written a second time, plain string search.
"""

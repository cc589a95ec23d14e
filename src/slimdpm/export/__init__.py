"""Pipelines that leave PyTorch: graphs, the sampler as a table, a runner that needs neither torch nor slimdpm."""

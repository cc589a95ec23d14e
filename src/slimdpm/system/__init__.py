"""The ground floor, which knows nothing of diffusion: files, hashes, processes, devices, progress, messages."""

"""The ablation: each part of the method by itself, at equal cost and equal training."""

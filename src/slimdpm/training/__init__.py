"""A run from its recipe to its student: planning, the loop, checkpoints, the student's folder."""

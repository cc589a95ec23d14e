"""``slimdpm demo``: a teacher of garments slimmed on a CPU in minutes, beside a Lite baseline that gets as long."""

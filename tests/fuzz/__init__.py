"""Malformed inputs of all kinds over every entry point: each is refused in one line, or harmless.

``python -m tests.fuzz --seed 1 --count 5000 -o FOLDER`` runs them, each in a forked process of its own under limits of
time and memory. `case` has what a kind hands over, `kinds_*` the kinds by subject, `base` the inputs that are whole and
get damaged, `runner` the processes, `judge` what counts as a fault.
"""

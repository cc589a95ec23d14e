"""The pages that show a run: figures and HTML."""

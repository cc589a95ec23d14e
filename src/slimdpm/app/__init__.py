"""``slimdpm app``: a page on which a teacher and its student make images from the same noise; the extra ``app``."""

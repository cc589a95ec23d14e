"""Images from wherever they are, and what is known of them; how they are decoded and in which order they are seen."""

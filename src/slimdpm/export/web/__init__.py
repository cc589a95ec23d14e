"""A pipeline as a web page: static files that make images in a browser, without a server that computes."""

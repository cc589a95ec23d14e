"""The method: networks and their cost, slimming, inheritance, the forward process, losses, the distiller."""

"""What frequencies are in images, samples and predictions."""

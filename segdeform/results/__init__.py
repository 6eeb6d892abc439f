"""What is made of labels: overlays, shares and other forms, in memory."""

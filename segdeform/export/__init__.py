"""Networks as files for other runtimes, each compared with the network that it was made of."""

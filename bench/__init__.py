"""What the bundle costs, side by side with the libraries called plainly: ``make bench``."""

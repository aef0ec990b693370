"""`rigsize calibrate`: the machine at hand, measured in two minutes. Imports torch."""

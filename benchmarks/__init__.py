"""What the platform costs, measured against what one would use instead, side by side in one run.

Belongs here: real processes over a copy of the project. Does not: anything that passes or fails; a figure is
for reading.
"""

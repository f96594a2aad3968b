"""What is wrong with an installation and its home, and how it is mended.

Belongs here: checks that only look, each a function from an `Examination` to findings, and what they look with. Does
not: mending (the commands that the findings name do), and how a table of findings is printed (`cli/doctor.py`).
"""

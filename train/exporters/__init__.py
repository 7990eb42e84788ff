"""A trained network as a file for other programs: one file here for each format, and what all of
them share."""

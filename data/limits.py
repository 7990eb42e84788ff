"""How large an image may be: files from the web may say or hold anything."""

MOST_PIXELS = 1 << 26
"""An image of more is left out, since it takes 200 MB and more to decode; cameras take up to 8,192
x 8,192."""
MOST_BYTES = 1 << 26
"""An encoded image of more is left out."""

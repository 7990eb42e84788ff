"""The report of runs: one HTML page that needs no network.

Charts are plain SVG that this package writes, not Plotly or Vega with their scripts inlined. A page
of a usual run is a few hundred kB so, of which most are the faces in it; Plotly's script alone is
4.5 MB, Vega's with Vega-Lite 0.8 MB, and each would have to be kept up to date. The page is read
without any script, prints, scales to a phone, and its numbers stand in tables for screen readers.
What a chart needs is small: scales, ticks and paths, in files of a hundred lines.
"""

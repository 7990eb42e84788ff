"""Foreign files to samples: folders, lists, zips, records, parquet; alignment; conversion to a
dataset."""

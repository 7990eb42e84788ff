"""Files as others ship them: one kind of source a module, found by `source.source_kinds`."""

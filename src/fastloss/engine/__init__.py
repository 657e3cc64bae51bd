"""How mathematics becomes machine code: scalar toolboxes, drivers, on-disk cache, threads."""

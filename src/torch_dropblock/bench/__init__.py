"""Cost of the layer beside `x * c` and its peers. Imports `layer` and what it stands on."""

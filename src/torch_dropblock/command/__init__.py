"""The command `torch-dropblock`: options in, tables and files out. Imports every other wing."""

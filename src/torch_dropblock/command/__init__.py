"""The command `torch-dropblock`: its options and its output. Imports every other wing."""

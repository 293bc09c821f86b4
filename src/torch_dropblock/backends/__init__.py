"""Draw and apply masks: one module per backend, and the choice of the backend for a call. Imports `core`."""

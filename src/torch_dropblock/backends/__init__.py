"""How a mask is drawn and applied: one module for each way, and the choice among them. Imports `core`."""
